"""Replays what vLLM's scheduler did, step by step, and says how far the simulated one is off.

    python benchmarks/simulate/lockstep.py [--output FILE]

The recordings are tests/simulate/vllm_steps.jsonl (vLLM's LLMEngine with small models on the CPU, and its scheduler
alone) and vllm_steps_asynchronous.jsonl (its scheduler as it runs on GPUs, a step ahead of its tokens). Block use is
the mean over all steps. The limit is 2 %; exit 1 when a recording is off by more.
"""

from __future__ import annotations

import argparse
import json
from array import array
from pathlib import Path
from typing import Any

from memplan.domain.simulation import CacheGroup, SimulationResult, SimulationSettings, Traffic
from memplan.simulate.run import simulate

_HERE = Path(__file__).parent
_TESTS = _HERE.parents[1] / "tests" / "simulate"
RECORDED = (_TESTS / "vllm_steps.jsonl", _TESTS / "vllm_steps_asynchronous.jsonl")
LIMIT = 0.02


def replayed(row: dict[str, Any]) -> SimulationResult:
    """Serve the requests of a recording."""
    groups = tuple(CacheGroup(block_tokens=size, window_tokens=window) for size, window in row["settings"]["groups"])
    columns = row["traffic"]
    names = ("prompt_tokens", "output_tokens", "prefix_of", "stream_of", "follows")
    traffic = Traffic(
        arrivals=array("d", columns["arrivals"]),
        unit="steps",
        prefixes=tuple(tuple((text, tokens) for text, tokens in pieces) for pieces in columns["prefixes"]),
        **{name: array("q", columns[name]) for name in names},
    )
    return simulate(SimulationSettings(**{**row["settings"], "groups": groups}, max_points=10**6), traffic)


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """Both sides of one recording."""
    result = replayed(row)
    held = [value for value, times in row["held"] for _ in range(times)]
    ours = result.series.used_blocks.tolist()
    gave_way = row["preemptions"][-1][0]
    return {
        "name": row["name"],
        "requests": result.counts.requests,
        "steps": [len(held), result.counts.steps],
        "mean_blocks": [round(sum(held) / len(held), 3), round(sum(ours) / len(ours), 3)],
        "preemptions": [gave_way, result.counts.preemptions],
        "cached_tokens": [sum(row["cached_tokens"]), sum(result.cached_tokens)],
        "equal_in_every_step": held == ours,
    }


def off(pair: list[float]) -> float:
    """How far ours is from vLLM's."""
    return abs(pair[1] - pair[0]) / max(1, pair[0])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lines = [line for path in RECORDED for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [compared(json.loads(line)) for line in lines]
    print(f"{'vLLM / memplan':44} {'steps':>15} {'mean blocks':>19} {'gave way':>11} {'cached':>15}  every step")
    for row in rows:
        cells = [
            f"{a:,} / {b:,}" for a, b in (row["steps"], row["mean_blocks"], row["preemptions"], row["cached_tokens"])
        ]
        same = "equal" if row["equal_in_every_step"] else ""
        print(f"{row['name']:44} {cells[0]:>15} {cells[1]:>19} {cells[2]:>11} {cells[3]:>15}  {same}")
    if arguments.output:
        arguments.output.write_text(json.dumps({"recorded": rows}, indent=1) + "\n", "utf-8")
    return int(any(off(row[name]) > LIMIT for row in rows for name in ("mean_blocks", "preemptions")))


if __name__ == "__main__":
    raise SystemExit(main())
