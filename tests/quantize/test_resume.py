"""A quantization that is killed at any moment goes on to the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import save_model

from memplan.errors import CorruptFile
from memplan.quantize.workspace import Workspace

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
    runs = [line.split() for line in done.stdout.splitlines()]
    assert all(same == "True" for *_, same in runs)
    blocks_at_kills = [blocks for _, ended, blocks, _ in runs if ended == "-9"]
    assert len(blocks_at_kills) == KILLS
    assert len(set(blocks_at_kills)) > 1  # they fall in more than one place


@pytest.mark.parametrize("left", [[], ["manifest.json.part"]])
def test_a_run_killed_before_its_first_manifest_is_begun_anew(tmp_path: Path, left: list[str]) -> None:
    workspace = Workspace(tmp_path / "out", {"model": "a"})
    workspace.folder.mkdir()
    for name in left:
        (workspace.folder / name).write_text("{", encoding="utf-8")
    workspace.open(resume=True, force=False)
    again = Workspace(tmp_path / "out", {"model": "a"})
    again.open(resume=True, force=False)
    assert again.blocks == []


def test_work_without_its_manifest_is_not_taken_for_none(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out", {"model": "a"})
    workspace.folder.mkdir()
    (workspace.folder / "block-0000.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFile, match="manifest"):
        workspace.open(resume=True, force=False)
