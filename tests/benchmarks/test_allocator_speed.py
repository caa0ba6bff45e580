"""The benchmark of the simulated allocator runs, and its traces are such as the rules are about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "profile" / "allocator_speed.py"


def test_every_trace_is_timed_under_every_setting() -> None:
    command = [sys.executable, str(SCRIPT), "--events", "4000", "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (0, 1), done.stderr  # 1: slower than the limit, as a busy machine may be
    rows = json.loads(done.stdout)
    assert len(rows) == 15
    assert all(row["events"] >= 4000 and row["allocator_per_s"] > 0 for row in rows)
    assert all(row["peak_reserved_bytes"] >= row["peak_allocated_bytes"] for row in rows)
    reserved = {(row["trace"], row["settings"]): row["peak_reserved_bytes"] for row in rows}
    # A cache that is copied to a longer one every step leaves holes that only pages can move.
    assert reserved["decode", "expandable"] < reserved["decode", "default"]
