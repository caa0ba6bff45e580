"""Time the catalogue: the first look-up of a fresh process, the next ones, and listing everything.

    python benchmarks/catalogue/lookup_time.py [--runs 20] [--json]

Each first look-up is measured in a process of its own, after `import yaml` (which takes longer than the look-up, and
which an estimate needs anyway for its engine's rules).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

FIRST = """
import time, yaml
import memplan.catalog.{module} as catalogue
start = time.perf_counter()
catalogue.{function}({name!r})
print(time.perf_counter() - start)
"""
LOOKUPS = {
    "GPU by key": ("gpus", "find_gpu", "a100-80g"),
    "GPU as the driver prints it": ("gpus", "find_gpu", "NVIDIA GeForce RTX 4090"),
    "MIG slice": ("gpus", "find_gpu", "a100-80g:3g.40gb"),
    "model by alias": ("models", "find_model", "llama-70b"),
    "model by hub id": ("models", "find_model", "Qwen/Qwen3-32B"),
    "no such model": ("models", "find_model", "no-such-model"),
}


def first_ms(module: str, function: str, name: str, runs: int) -> float:
    """Return the median over fresh processes, in milliseconds."""
    code = FIRST.format(module=module, function=function, name=name)
    command = [sys.executable, "-c", code]
    times = [float(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(runs)]
    return statistics.median(times) * 1e3


def next_ms(module: str, function: str, name: str) -> float:
    """Return the mean of a hundred look-ups in this process, in milliseconds."""
    import importlib

    look_up = getattr(importlib.import_module(f"memplan.catalog.{module}"), function)
    look_up(name)
    start = time.perf_counter()
    for _ in range(100):
        look_up(name)
    return (time.perf_counter() - start) * 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = {what: (first_ms(*how, options.runs), next_ms(*how)) for what, how in LOOKUPS.items()}
    if options.json:
        print(json.dumps({what: {"first_ms": first, "next_ms": after} for what, (first, after) in rows.items()}))
        return
    for what, (first, after) in rows.items():
        print(f"{what:30} first {first:6.2f} ms   next {after:6.2f} ms")


if __name__ == "__main__":
    main()
