"""How long a whole memplan process takes, beside a bare Python and other tools in the same run.

    python benchmarks/speed/start_up.py [--rounds N] [--json] [-- COMMAND ...]

Every command is run in turn, round after round, so that a busy machine slows all of them alike; the shortest CPU and
wall times count. `ratio` is CPU time over that of `python -c pass`. Extra commands after `--` (each one argument, such
as "hf-mem --model-id x") are timed beside memplan. Bytecode is cached by a first round that is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

TRAINING = "memplan estimate llama-3.1-8b --train lora --gpu rtx-4090 --seq-len 4096 --micro-batch 2"
LIMITS = {"memplan estimate llama-70b --gpu a100-80g": 12.0, "memplan --help": 10.0, TRAINING: 30.0}
MAX_RSS_MIB = 60.0


def once(command: list[str]) -> tuple[float, float]:
    """Run a command and return its CPU and wall time in seconds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def peak_mib(command: list[str]) -> float:
    """The largest resident size of a command, in MiB (Linux counts in KiB)."""
    code = (
        "import resource, subprocess, sys;"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code, *command], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main() -> int:
    """Time the commands and print a table or JSON; exit 1 when a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("others", nargs="*")
    options = parser.parse_args()
    memplan = shutil.which("memplan", path=str(Path(sys.executable).parent)) or "memplan"
    names = ["python -c pass", *LIMITS, "memplan estimate llama-70b --gpu a100-80g --json", *options.others]
    commands = {name: shlex.split(name) for name in names}
    for command in commands.values():
        command[0] = {"python": sys.executable, "memplan": memplan}.get(command[0], command[0])
        once(command)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name, command in commands.items():
            times[name].append(once(command))
    bare = min(cpu for cpu, _ in times["python -c pass"])
    rows = []
    for name in names:
        cpu, wall = (min(column) for column in zip(*times[name], strict=True))
        rows.append({"command": name, "cpu_s": cpu, "wall_s": wall, "ratio": cpu / bare, "limit": LIMITS.get(name)})
    peak = peak_mib(commands["memplan estimate llama-70b --gpu a100-80g"])
    kept = peak <= MAX_RSS_MIB and all(row["limit"] is None or row["ratio"] <= row["limit"] for row in rows)
    if options.json:
        print(json.dumps({"rows": rows, "peak_mib": peak, "kept": kept}))
    else:
        for row in rows:
            limit = f"(limit {row['limit']:g})" if row["limit"] else ""
            print(
                f"{row['command']:52} {row['cpu_s'] * 1e3:8.1f} ms CPU {row['wall_s'] * 1e3:8.1f} ms wall"
                f" {row['ratio']:6.1f} x bare {limit}"
            )
        print(f"largest resident size of an estimate: {peak:.1f} MiB (limit {MAX_RSS_MIB:g})")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
