"""Writes down what vLLM's scheduler did, step by step, in a form that a test can replay without vLLM.

    python benchmarks/simulate/record_lockstep.py --vllm-python PYTHON > tests/simulate/vllm_steps.jsonl
    python benchmarks/simulate/record_lockstep.py --vllm-python PYTHON --asynchronous \
        > tests/simulate/vllm_steps_asynchronous.jsonl

PYTHON is an interpreter with vLLM (0.32, CPU build). The small models are made on the way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

from lockstep_cases import cases

_HERE = Path(__file__).parent


def main() -> int:
    """Record every case and print the recording."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--asynchronous", action="store_true", help="the scheduler that is a step ahead of its tokens")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wanted = [
            case
            for case in cases()
            if arguments.only in case["name"] and case.get("asynchronous", False) == arguments.asynchronous
        ]
        for shape in {case["shape"] for case in wanted}:
            made = [sys.executable, str(_HERE.parent / "engines" / "tiny_models.py"), shape, f"{folder}/{shape}"]
            Path(folder, shape).mkdir()
            subprocess.run(made, check=True, capture_output=True)
        asked = [{**case, "model": f"{folder}/{case['shape']}"} for case in wanted]
        for key, same in groupby(asked, key=lambda case: json.dumps([case["model"], case["mode"], case["engine"]])):
            for line in answers(arguments.vllm_python, list(same), key):
                print(line, flush=True)
    return 0


def answers(python: str, same: list[dict[str, Any]], what: str) -> list[str]:
    """The recordings of cases that one engine can serve."""
    worker = [python, str(_HERE / "vllm_worker.py")]
    text = "\n".join(json.dumps(case) for case in same)
    done = subprocess.run(worker, input=text, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what}\n{done.stderr[-3000:]}")
    return [
        json.dumps(kept(case, json.loads(line)), separators=(",", ":"))
        for case, line in zip(same, done.stdout.splitlines(), strict=True)
    ]


def kept(case: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
    """The case and what happened, as runs of equal values where that is shorter."""
    scheduler = {**case["engine"], **case.get("scheduler", {})}
    return {
        "name": case["name"],
        "vllm": seen["vllm"],
        "settings": {
            "num_blocks": case["pool_blocks"],
            "groups": [[group["block_tokens"], window_of(group)] for group in seen["groups"]],
            "context_tokens": scheduler["max_model_len"],
            "max_num_seqs": scheduler["max_num_seqs"],
            "max_num_batched_tokens": scheduler["max_num_batched_tokens"],
            "prefix_caching": case["prefix_caching"],
            "long_prefill_tokens": scheduler.get("long_prefill_token_threshold", 0),
            "watermark_fraction": scheduler.get("watermark", 0.0),
            "reserve_prompt": scheduler.get("scheduler_reserve_full_isl", True),
            "async_scheduling": case.get("asynchronous", False),
        },
        "traffic": case["traffic"],
        **{name: runs(seen[name]) for name in ("held", "running", "waiting", "tokens", "preemptions")},
        "steps": runs([step - place for place, step in enumerate(seen["steps"])]),
        "finished": seen["finished"],
        "cached_tokens": seen["cached_tokens"],
    }


def window_of(group: dict[str, Any]) -> int | None:
    """The window of a sliding group; full attention may carry one that it does not use."""
    return group["window_tokens"] if group["kind"].startswith("SlidingWindow") else None


def runs(values: list[int]) -> list[list[int]]:
    """[value, how often in a row]..."""
    return [[value, len(list(same))] for value, same in groupby(values)]


if __name__ == "__main__":
    sys.exit(main())
