"""The comparison with other libraries: planted outliers change nothing, and libraries are compared in pairs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

from memplan.introspect.resolve import weights_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "quantize"))
from outliers import plant
from peer_tables import difference, quality_table, rise


def run_of(library: str, seed: int, more_loss: list[float]) -> dict[str, object]:
    """A run as it is recorded, of 4 x 100 tokens."""
    setting = {"model": "demo", "method": "gptq", "weights_only": False, "bits": 4, "group_size": 128}
    return {**setting, "library": library, "seed": seed, "tokens": 400, "divergence": 0.01, "more_loss": more_loss}


def test_a_model_with_planted_outliers_predicts_what_it_did_to_the_last_bit(tmp_path: Path) -> None:
    demo = weights_folder("demo")
    assert demo is not None
    plant(demo, tmp_path)
    tokens = torch.arange(64).reshape(2, 32)
    logits, weights = [], []
    for path in (demo, tmp_path):
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        weights.append(model.model.layers[0].mlp.down_proj.weight.abs().amax(0))
        with torch.no_grad():
            logits.append(model(tokens).logits)
    assert torch.equal(*logits)
    assert not torch.equal(*weights)


def test_a_difference_is_of_pairs_and_what_both_lost_is_in_no_error() -> None:
    theirs = [run_of("gptqmodel", seed, [4.0, 40.0, -8.0, 0.0]) for seed in range(3)]
    ours = [run_of("native", seed, [3.0, 39.0, -9.0, -1.0]) for seed in range(3)]
    found, error = difference(ours, theirs)
    assert found == pytest.approx(-0.01, rel=0.01)
    assert error == pytest.approx(0.0, abs=1e-9)
    assert rise(theirs)[1] > 0.02


def test_a_table_has_ours_first_and_theirs_beside_it() -> None:
    lines = quality_table([run_of("gptqmodel", 0, [1.0] * 4), run_of("native", 0, [0.0] * 4)]).splitlines()
    assert "| memplan | +0.00 ± 0.00 % |  |" in lines[2]
    assert "| GPTQModel | +1.01 ± 0.00 % | -1.00 ± 0.00 % |" in lines[3]
