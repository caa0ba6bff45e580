"""A quantization that is killed at any moment goes on to the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import save_model

KILLS = 50


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks")
def test_fifty_kills_at_random_moments_end_in_the_same_bytes(tmp_path: Path) -> None:
    source = save_model("llama", tmp_path / "model")
    script = Path(__file__).with_name("kill_and_resume.py")
    done = subprocess.run(
        [sys.executable, str(script), str(source), str(tmp_path), str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    kills = [line.split() for line in done.stdout.splitlines()]
    assert len(kills) == KILLS
    assert all(same == "True" for *_, same in kills)
    assert sum(ended == "-9" for _, ended, _, _ in kills) > KILLS // 2
    assert len({blocks for _, ended, blocks, _ in kills if ended == "-9"}) > 1  # they fall in more than one place
