"""Two processes make the checkpoint that one makes, to the last bit, though they have other threads and batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_families import save_family
from small_models import FAMILIES, save_model


@pytest.mark.parametrize(("family", "method"), [("llama", "gptq"), ("llama", "awq"), ("mixtral", "awq+gptq")])
def test_two_processes_make_the_checkpoint_that_one_with_two_threads_makes(
    tmp_path: Path, family: str, method: str
) -> None:
    source = save_model(family, tmp_path / "model") if family in FAMILIES else save_family(family, tmp_path / "model")
    run(source, tmp_path / "one", method, 1)
    run(source, tmp_path / "two", method, 2)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert [name for name, value in one.items() if not torch.equal(value, two[name])] == []


def run(source: Path, output: Path, method: str, count: int) -> None:
    """Quantize in so many processes."""
    script = Path(__file__).with_name("one_of_two.py")
    shared = {"WORLD_SIZE": str(count), "MEMPLAN_MEETING": str(output) + ".meeting", "OMP_NUM_THREADS": str(2 // count)}
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
