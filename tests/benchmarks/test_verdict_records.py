"""What the scorer of verdicts makes of a record that leaves something out."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_FILE = Path(__file__).parents[2] / "benchmarks" / "verdicts" / "score.py"
_SPEC = importlib.util.spec_from_file_location("verdicts_score", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
score = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(score)

RUN = {
    "source": "vllm-project/vllm#14452",
    "engine_version": "0.8.5",
    "model": "Qwen/Qwen3-8B",
    "gpu": "RTX 5090",
    "verdict": "starts",
    "quote": "",
}


def test_a_run_is_completed_by_its_author_s_other_runs_of_the_same_build() -> None:
    run, other = {**RUN, "max_model_len": 60000}, {**RUN, "gpu_memory_utilization": 0.85}
    assert score.completed(run, [run, other])["gpu_memory_utilization"] == 0.85
    assert "max_model_len" not in score.completed(other, [run, other])


def test_runs_that_disagree_or_differ_complete_nothing() -> None:
    run = {**RUN}
    loud, quiet = ({**RUN, "gpu_memory_utilization": value} for value in (0.85, 0.95))
    newer = {**RUN, "engine_version": "0.9.0", "gpu_memory_utilization": 0.9}
    assert score.completed(run, [run, loud, quiet]) == run
    assert score.completed(run, [run, newer]) == run
    undated = {**RUN, "engine_version": None}
    assert score.completed(undated, [undated, {**undated, "gpu_memory_utilization": 0.9}]) == undated


def test_no_number_of_gpus_is_one_unless_several_are_spoken_of() -> None:
    assert score.missing(RUN) is None
    assert score.layout_of(RUN).num_ranks == 1
    assert (
        score.missing({**RUN, "notes": "multi-worker run"}) == "the number of GPUs is not named, and there were several"
    )


def test_bits_behind_a_name_are_its_scheme_s() -> None:
    assert score.model_name({"model": "llama-2 70B AWQ 4bit"}, None) == "llama-2 70B AWQ"
