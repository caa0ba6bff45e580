"""What vLLM's scheduler did, step by step, is what the simulated one does.

vllm_steps.jsonl is written by benchmarks/simulate/record_lockstep.py: a real LLMEngine with a small model, and vLLM's
scheduler alone under more traffic; vllm_steps_asynchronous.jsonl by the same, of its asynchronous scheduler. Arrivals
are given in steps, so that no clock comes between.
"""

from __future__ import annotations

import json
from array import array
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from memplan.domain.simulation import CacheGroup, SimulationResult, SimulationSettings, Traffic
from memplan.simulate.jumping import can_jump
from memplan.simulate.run import simulate

_RECORDED = [Path(__file__).with_name(name) for name in ("vllm_steps.jsonl", "vllm_steps_asynchronous.jsonl")]


@cache
def recorded() -> dict[str, dict[str, Any]]:
    lines = [line for path in _RECORDED for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["name"]: row for row in map(json.loads, lines)}


def settings_of(row: dict[str, Any]) -> SimulationSettings:
    groups = tuple(CacheGroup(block_tokens=block, window_tokens=window) for block, window in row["settings"]["groups"])
    return SimulationSettings(**{**row["settings"], "groups": groups}, max_points=10**6)


def replay(row: dict[str, Any], *, stepwise: bool) -> SimulationResult:
    columns = row["traffic"]
    traffic = Traffic(
        arrivals=array("d", columns["arrivals"]),
        unit="steps",
        prefixes=tuple(tuple((text, tokens) for text, tokens in pieces) for pieces in columns["prefixes"]),
        **{
            name: array("q", columns[name])
            for name in ("prompt_tokens", "output_tokens", "prefix_of", "stream_of", "follows")
        },
    )
    return simulate(settings_of(row), traffic, stepwise=stepwise)


def spread(runs: list[list[int]]) -> list[int]:
    return [value for value, times in runs for _ in range(times)]


def ways() -> list[tuple[str, bool]]:
    """Every recording step by step, and jumping where that is something else."""
    found = [(name, True) for name in recorded()]
    return found + [(name, False) for name, row in recorded().items() if can_jump(settings_of(row))]


@pytest.mark.parametrize(("name", "stepwise"), ways())
def test_every_step_is_the_one_that_vllm_took(name: str, stepwise: bool) -> None:
    row = recorded()[name]
    result = replay(row, stepwise=stepwise)
    steps = [place + idle for place, idle in enumerate(spread(row["steps"]))]
    assert [round(end) - 1 for end in result.series.time_s] == steps
    assert result.series.used_blocks.tolist() == spread(row["held"])
    assert result.series.running.tolist() == spread(row["running"])
    assert result.series.waiting.tolist() == spread(row["waiting"])
    assert result.series.preemptions.tolist() == spread(row["preemptions"])
    assert [round(end) for end in result.finished_s] == row["finished"]
    assert result.cached_tokens.tolist() == row["cached_tokens"]


@pytest.mark.parametrize(("is_async", "found_tokens"), [(False, 50_000), (True, 40_000)])
def test_the_recordings_have_preemptions_hits_and_windows(is_async: bool, found_tokens: int) -> None:
    rows = [row for row in recorded().values() if row["settings"].get("async_scheduling", False) == is_async]
    assert sum(row["preemptions"][-1][0] for row in rows) > 500
    assert sum(sum(row["cached_tokens"]) for row in rows) > found_tokens
    assert any(window for row in rows for _, window in row["settings"]["groups"])
    assert any(len(row["settings"]["groups"]) > 1 for row in rows)
    assert is_async or any(row["name"].startswith("engine") for row in rows)
