"""The commands that the README promises, verbatim and one after the other, in an empty directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from memplan_in_process import Memplan

pytest.importorskip("torch")
pytest.importorskip("transformers")


def test_four_commands_follow_one_another_without_naming_the_model_again(memplan_here: Memplan) -> None:
    estimated = memplan_here("estimate", "llama-70b", "--gpu", "a100-80g")
    assert estimated.returncode == 1
    assert "DOES NOT FIT" in estimated.stdout

    quantized = memplan_here("quantize", "--method", "awq")
    assert quantized.returncode == 3
    assert "meta-llama/Llama-3.3-70B-Instruct: awq, 4 bits" in quantized.stdout
    assert "llama-70b on a100-80g" in quantized.stderr

    profiled = memplan_here("profile", "--phase", "decode")
    assert profiled.returncode == 1
    assert "decode" in profiled.stdout
    assert "OUT OF MEMORY" in profiled.stdout

    emitted = memplan_here("emit-config")
    assert emitted.returncode == 0
    config = yaml.safe_load(emitted.stdout)
    assert "awq" in config["model"]
    Path("vllm.yaml").write_text(emitted.stdout)
    again = memplan_here("estimate", "--config", "vllm.yaml", "--gpu", "a100-80g", "--quiet")
    assert again.returncode == 0
    assert again.stdout.startswith("FITS")
