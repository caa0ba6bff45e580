"""Two processes make the checkpoint that one makes, up to the order of float sums."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import save_model

from memplan.quantize.formats.compressed_tensors import _packing


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_two_processes_make_the_checkpoint_that_one_makes(tmp_path: Path, method: str) -> None:
    source = save_model("llama", tmp_path / "model")
    run(source, tmp_path / "one", method, 1)
    run(source, tmp_path / "two", method, 2)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    _, unpack = _packing()
    differing = total = 0
    for name in (name for name in one if name.endswith("weight_packed")):
        shape = torch.Size(one[name.replace("packed", "shape")].tolist())
        first, second = (unpack(tensors[name], 4, shape) for tensors in (one, two))
        differing += int((first != second).sum())
        total += first.numel()
    assert differing < 0.001 * total


def run(source: Path, output: Path, method: str, count: int) -> None:
    """Quantize in so many processes."""
    script = Path(__file__).with_name("one_of_two.py")
    shared = {"WORLD_SIZE": str(count), "MEMPLAN_MEETING": str(output) + ".meeting", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(source), str(output), method],
            env={**os.environ, **shared, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate()[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), said
