"""The comparison of simulated and real peaks, without a GPU: its cases, its children, its score."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.0")

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
import profile_truth
from model_folder import write_model_folder
from truth_cases import cases, max_tokens


def test_there_are_twenty_models_and_every_way_of_training() -> None:
    every = list(cases(is_rehearsal=False))
    assert len({case.model.name for case in every}) >= 20
    ways = {key for case in every for key in case.options if case.trains}
    assert ways >= {"checkpointing", "lora_rank", "optimizer", "attention"}
    for case in every:
        assert case.options["prompt_tokens"] <= max_tokens(case.model)


def test_a_case_has_real_and_simulated_peaks_of_every_phase(tmp_path: Path) -> None:
    case = next(case for case in cases(is_rehearsal=True) if case.trains)
    row = profile_truth.run_case(case, write_model_folder(case.model, tmp_path), "cpu")
    assert row["architecture"] == "GPTNeoXForCausalLM"
    assert [phase["phase"] for phase in row["phases"]] == ["load", "forward", "backward", "optimizer"]
    for phase in row["phases"]:
        assert phase["real"]["reserved_bytes"] >= phase["real"]["allocated_bytes"] > 0
        assert phase["simulated"]["allocated_bytes"] == pytest.approx(phase["real"]["allocated_bytes"], rel=0.2)


def test_a_sweep_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = profile_truth.keyed("cpu")
    first, *rest = every
    monkeypatch.setattr(profile_truth, "RECORDS", tmp_path)
    done = [{"key": key, "phases": []} for key in rest]
    (tmp_path / profile_truth.RUNS).write_text("".join(json.dumps(each) + "\n" for each in done))
    options = Namespace(python=sys.executable, device="cpu", into=tmp_path / "more", budget_s=300, only=None)
    assert profile_truth.sweep(options) == 0
    lines = (tmp_path / "more" / profile_truth.RUNS).read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [first]
    assert json.loads(lines[0])["machine"]["gpu"] is None


def test_without_time_everything_is_put_off(tmp_path: Path) -> None:
    options = Namespace(python=sys.executable, device="cpu", into=tmp_path, budget_s=0.0, only=None)
    assert profile_truth.sweep(options) == 7
    assert not (tmp_path / profile_truth.RUNS).exists()


def record(simulated: int) -> dict[str, Any]:
    sizes = {"allocated_bytes": 1000, "reserved_bytes": 1000}
    peaks = {"phase": "prefill", "real": sizes, "simulated": {**sizes, "allocated_bytes": simulated}}
    return {"model": "small", "architecture": "Small", "options": {}, "phases": [peaks]}


@pytest.mark.parametrize(("simulated", "code"), [(1005, 0), (1100, 1)])
def test_a_score_says_how_far_off_it_is(
    simulated: int, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(record(simulated)) + "\n")
    assert profile_truth.score([path]) == code
    assert f"worst {simulated / 10 - 100:+.2f}%" in capsys.readouterr().out
