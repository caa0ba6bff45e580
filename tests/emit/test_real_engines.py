"""What is written, before the real engines: a few setups, where an engine is at hand.

MEMPLAN_VLLM_PYTHON and MEMPLAN_SGLANG_PYTHON name interpreters that have them, MEMPLAN_LLAMA_SERVER a program; all
setups are checked by benchmarks/engines/check_all.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "engines" / "check_all.py"
OPTIONS = {
    "MEMPLAN_VLLM_PYTHON": "--vllm",
    "MEMPLAN_SGLANG_PYTHON": "--sglang",
    "MEMPLAN_LLAMA_SERVER": "--llama-server",
}


def check_all(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), "--quick", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("variable", sorted(OPTIONS))
def test_a_real_engine_takes_what_is_written(variable: str) -> None:
    where = os.environ.get(variable)
    if not where:
        pytest.skip(f"{variable} is not set: no such engine at hand")
    done = check_all(OPTIONS[variable], where)
    assert done.returncode == 0, done.stderr
    assert "| 14 | 0 |" in done.stdout


def test_engines_that_are_not_there_are_skipped_with_a_word() -> None:
    missing = str(SCRIPT.with_name("no-such-program"))
    done = check_all("--vllm", sys.executable, "--sglang", sys.executable, "--llama-server", missing)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped: ") == 4
