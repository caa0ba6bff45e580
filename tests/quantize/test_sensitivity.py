"""The damage of units: fewer bits do more, what is fused is one unit, and one batch measures what several do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_models import save_model, windows

from memplan.quantize import sensitivity
from memplan.quantize.sensitivity import measure_units
from memplan.quantize.skeleton import Skeleton
from memplan.quantize.width import Width

WIDTHS = (Width(4, 64), Width(4, 32), Width(8), Width(16))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama."""
    return save_model("llama", tmp_path_factory.mktemp("llama"))


def test_layers_that_are_fused_are_one_unit_and_fewer_bits_do_more_damage(llama: Path) -> None:
    skeleton = Skeleton(llama)
    units = measure_units(skeleton, windows()[0], WIDTHS, kept=lambda name: name.endswith("down_proj"))
    assert [[name.rpartition(".")[2] for name in unit.modules] for unit in units] == 2 * [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
    ]
    for unit in units:
        coarse, fine, eight, plain = (unit.damage[width] for width in WIDTHS)
        assert coarse > fine > 50 * eight > plain == 0.0
    assert skeleton.dtype == torch.bfloat16


def test_batches_change_nothing(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (1, 4):
        monkeypatch.setattr(sensitivity, "WINDOWS_AT_ONCE", size)
        found.append(measure_units(Skeleton(llama), windows()[0], WIDTHS, kept=lambda name: False))
    for one, other in zip(*found, strict=True):
        assert one.damage[Width(4, 32)] == pytest.approx(other.damage[Width(4, 32)], rel=1e-4)
