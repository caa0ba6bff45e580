"""Whole quantizations in processes of their own: several that torchrun starts, and a disk that fills under one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from small_llama import save_small_llama, save_texts

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

FEW = ("--num-samples", "9", "--window", "64", "--batch-size", "3", "--group-size", "32", "--offline", "--quiet")
AUTO = ("--method", "auto", "--target-memory", "0.15MiB")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
FULL_DISK = Path(__file__).resolve().parents[1] / "quantize" / "full_disk.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama."""
    return save_small_llama(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts."""
    return save_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def surroundings(tmp_path: Path) -> Mapping[str, str]:
    """One thread, nothing of the network, a state of its own."""
    state = {"XDG_STATE_HOME": str(tmp_path / "state"), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **state, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("method", [("--method", "gptq"), AUTO], ids=["gptq", "auto"])
def test_two_processes_that_torchrun_starts_write_what_one_writes(
    model: Path, texts: Path, tmp_path: Path, surroundings: Mapping[str, str], method: tuple[str, ...]
) -> None:
    asked = ("-m", "memplan", "quantize", str(model), *method, *FEW, "--calibration", str(texts))
    for start, place in (((sys.executable,), "one"), (TORCHRUN, "two")):
        command = [*start, *asked, "--output", str(tmp_path / place)]
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("passed:") == 1
    for name in ("model.safetensors", "config.json"):
        assert digest(tmp_path / "one" / name) == digest(tmp_path / "two" / name)


def test_a_disk_that_fills_stops_work_that_goes_on_to_the_same_bytes_when_there_is_room(
    model: Path, texts: Path, tmp_path: Path, surroundings: Mapping[str, str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    alone = ("unshare", "-Urm")
    if shutil.which("unshare") is None or subprocess.run([*alone, "mount", "-t", "tmpfs", "t", str(disk)]).returncode:
        pytest.skip("no disk of its own can be mounted here")
    asked = (str(model), str(texts), "--method", "gptq", *FEW)
    command = [*alone, sys.executable, str(FULL_DISK), str(disk), *asked]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"] == [7, 0], found["said"]
    assert "the disk is full after" in found["said"][0]
    assert "hint: the same command with --resume, with more room, goes on" in found["said"][0]
    assert "Traceback" not in found["said"][0]
    assert found["kept"] >= 1
    assert found["left"] == ["out"]
    whole = [sys.executable, "-m", "memplan", "quantize", str(model), "--calibration", str(texts), "--method", "gptq"]
    subprocess.run([*whole, *FEW, "--output", str(tmp_path / "whole")], env=surroundings, check=True)
    for name in ("model.safetensors", "config.json"):
        assert found["files"][name] == digest(tmp_path / "whole" / name)


def digest(path: Path) -> str:
    """A hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
