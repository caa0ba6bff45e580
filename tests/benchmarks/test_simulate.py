"""The benchmarks of the simulation run, and say what they are about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks" / "simulate"


def test_every_case_of_the_speed_benchmark_is_timed() -> None:
    command = [sys.executable, str(FOLDER / "speed.py"), "--requests", "400", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (0, 1), done.stderr  # 1: slower than the limit, as a busy machine may be
    cases = json.loads(done.stdout)["cases"]
    assert len(cases) == 6
    assert all(case["steps"] > 0 for case in cases.values())
