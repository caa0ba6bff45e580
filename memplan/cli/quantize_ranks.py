"""`memplan quantize --devices N`: the same command started N times, each process with its share of the work.

Processes find one another by a file; those that torchrun has started know how by themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from memplan.errors import UsageError

_EVERY_S = 0.1


def is_one_of_several() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def run_on_devices(count: int) -> tuple[int, str]:
    """Start this command line in `count` processes and return the first one's exit code and answer.

    When one fails, all end.

    Raises: UsageError for a count that is none.
    """
    if count < 1:
        raise UsageError(f"--devices is {count}", hint="it must be at least 1")
    with tempfile.TemporaryDirectory(prefix="memplan-") as folder, (Path(folder) / "answer").open("w+") as answer:
        threads = max(1, (os.cpu_count() or 1) // count)
        shared = {"WORLD_SIZE": str(count), "MEMPLAN_MEETING": str(Path(folder) / "meeting")}
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "memplan", *sys.argv[1:]],
                stdout=answer if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else subprocess.DEVNULL,
                env={
                    "OMP_NUM_THREADS": str(threads),
                    **os.environ,
                    **shared,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                },
            )
            for rank in range(count)
        ]
        try:
            code = _first_failure(processes)
            return code, (Path(folder) / "answer").read_text("utf-8")
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
                process.wait()


def _first_failure(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all and return 0, or at once the exit code of one that fails: the first's, where it speaks soon."""
    while True:
        try:
            codes = [process.poll() for process in processes]
            failed = next((code for code in codes if code), None)
            if failed:
                try:
                    return processes[0].wait(timeout=10) or failed
                except subprocess.TimeoutExpired:
                    return failed
            if all(code == 0 for code in codes):
                return 0
            time.sleep(_EVERY_S)
        except KeyboardInterrupt:
            continue  # all of them were interrupted as well, and the first says how to go on
