"""Start-ups of vLLM that were printed in public, 0.4 to 0.23: the budget has their weights, peak and cache.

Each line of vllm_runs.jsonl is one start-up: what was set, and what was printed. They are a choice of the records in
benchmarks/vllm of models that the catalogue knows. The tolerances are wider than today's errors and narrower than what
a term that goes missing costs.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from memplan.cli.serving_options import parse_devices
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.vllm.engine import VLLM
from memplan.pipeline import load_model, with_scheme
from memplan.units import GIB

RUNS = [json.loads(line) for line in Path(__file__).with_name("vllm_runs.jsonl").read_text().splitlines()]
PRINTED_GIB = 0.006  # two digits are printed


@lru_cache(maxsize=64)
def predicted(index: int) -> MemoryBudget:
    run = RUNS[index]
    spec = with_scheme(load_model(run["model"], revision=None, offline=True, introspect="auto"), run.get("quant"))
    memory = f"{run['gpu_memory_gib']}GiB" if "gpu_memory_gib" in run else None
    (device,) = parse_devices(run["gpu"], memory=memory, free=None)
    settings = ServingSettings(
        layout=ParallelLayout(tensor=run["tp"], pipeline=run["pp"]),
        workload=Workload(context_tokens=run.get("context_tokens")),
        gpu_memory_utilization=run.get("utilization"),
        **{name: run.get(name) for name in ("dtype", "kv_dtype", "max_num_seqs", "max_num_batched_tokens")},
        **{name: run.get(name) for name in ("block_size", "eager", "chunked_prefill")},
    )
    return VLLM.estimate(spec, device.gpu, settings, run["version"])


def runs_with(key: str) -> Any:
    found = [index for index, run in enumerate(RUNS) if key in run["printed"]]
    assert len(found) >= 10
    return pytest.mark.parametrize("index", found, ids=lambda index: f"{RUNS[index]['id']}-{RUNS[index]['model']}")


@runs_with("weights_gib")
def test_the_weights_are_those_that_were_printed(index: int) -> None:
    real = RUNS[index]["printed"]["weights_gib"]
    assert predicted(index).group_bytes("weights") / GIB == pytest.approx(real, rel=0.008, abs=PRINTED_GIB)


@runs_with("activation_gib")
def test_the_activation_peak_is_the_one_that_was_printed(index: int) -> None:
    real = RUNS[index]["printed"]["activation_gib"]
    assert predicted(index).group_bytes("activation_peak") / GIB == pytest.approx(real, rel=0.02, abs=0.025)


@runs_with("cache_gib")
def test_the_cache_is_the_one_that_was_printed_within_a_hundredth_of_the_gpu(index: int) -> None:
    budget, real = predicted(index), RUNS[index]["printed"]["cache_gib"]
    assert budget.group_bytes("kv_cache") / GIB == pytest.approx(real, abs=0.01 * budget.gpu_memory_bytes / GIB)


@runs_with("cache_tokens")
def test_the_tokens_are_those_of_the_cache_that_was_printed(index: int) -> None:
    """Tokens per byte of cache, so that an error of the cache's size does not count twice."""
    budget, printed = predicted(index), RUNS[index]["printed"]
    assert budget.kv.capacity_tokens is not None
    ours = budget.kv.capacity_tokens / budget.group_bytes("kv_cache")
    if "cache_gib" in printed:
        assert ours == pytest.approx(printed["cache_tokens"] / printed["cache_gib"] / GIB, rel=0.01)
    else:
        assert budget.kv.capacity_tokens == pytest.approx(printed["cache_tokens"], rel=0.02)


@runs_with("blocks")
def test_the_blocks_are_those_that_were_printed(index: int) -> None:
    budget = predicted(index)
    slack = 0.01 * budget.gpu_memory_bytes / max(1, budget.group_bytes("kv_cache"))
    assert budget.kv.blocks == pytest.approx(RUNS[index]["printed"]["blocks"], rel=0.005 + slack)
