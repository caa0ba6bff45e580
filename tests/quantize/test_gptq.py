"""GPTQ: it solves what it says it solves."""

from __future__ import annotations

import itertools

import pytest
import torch

from memplan.quantize.awq import output_error
from memplan.quantize.gptq import GptqSettings, gptq
from memplan.quantize.grid import Grid, dequantize, round_to_nearest


def problem(num_out: int = 24, num_in: int = 96, tokens: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and the Hessian of inputs that go together and differ in size."""
    generator = torch.Generator().manual_seed(0)
    mixing_II = torch.eye(num_in) + 0.3 * torch.randn((num_in, num_in), generator=generator)
    input_TI = torch.randn((tokens, num_in), generator=generator) @ mixing_II
    input_TI[:, ::20] *= 6
    weight_OI = torch.randn((num_out, num_in), generator=generator) * 0.1
    return weight_OI, input_TI.t() @ input_TI / tokens


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_outputs_change_less_than_by_rounding_and_the_loss_says_by_how_much(
    ordered: bool, group_size: int, symmetric: bool
) -> None:
    weight_OI, hessian_II = problem()
    grid = Grid(bits=4, group_size=group_size, symmetric=symmetric)
    found = gptq(weight_OI, hessian_II.clone(), grid, GptqSettings(activation_order=ordered))
    error = output_error(found.dequantize() - weight_OI, hessian_II)
    plain = output_error(round_to_nearest(weight_OI, grid).dequantize() - weight_OI, hessian_II)
    assert error < 0.6 * plain
    assert found.loss == pytest.approx(error, rel=1e-3)


def test_inputs_that_have_nothing_in_common_leave_rounding_as_the_best_answer() -> None:
    weight_OI, _ = problem()
    grid = Grid(bits=4, group_size=32)
    found = gptq(weight_OI, torch.eye(96), grid)
    assert torch.equal(found.code_OI, round_to_nearest(weight_OI, grid).code_OI)


def test_it_is_near_the_best_of_all_roundings_of_a_small_row() -> None:
    weight_OI, hessian_II = problem(num_out=6, num_in=8)
    grid = Grid(bits=2)
    found = gptq(weight_OI, hessian_II.clone(), grid)
    for row in range(6):
        errors = []
        for codes in itertools.product(range(4), repeat=8):
            code_OI = torch.tensor([codes], dtype=torch.uint8)
            scales = type(found.scales)(found.scales.scale_OG[row : row + 1], found.scales.zero_OG[row : row + 1])
            errors.append(output_error(dequantize(code_OI, scales, grid) - weight_OI[row : row + 1], hessian_II))
        got = output_error(found.dequantize()[row : row + 1] - weight_OI[row : row + 1], hessian_II)
        plain_OI = round_to_nearest(weight_OI, grid).dequantize()
        plain = output_error(plain_OI[row : row + 1] - weight_OI[row : row + 1], hessian_II)
        assert min(errors) <= got * (1 + 1e-5)
        assert got <= plain * (1 + 1e-5) or got <= 1.5 * min(errors)


def test_a_feature_that_no_token_used_is_set_to_zero() -> None:
    weight_OI, hessian_II = problem()
    hessian_II[7], hessian_II[:, 7] = 0.0, 0.0
    found = gptq(weight_OI, hessian_II, Grid(bits=4, group_size=32))
    assert float(found.dequantize()[:, 7].abs().max()) == 0
    assert not found.fallback


def test_a_hessian_that_is_not_one_falls_back_on_rounding_and_says_so() -> None:
    weight_OI, hessian_II = problem()
    hessian_II = hessian_II - 50 * torch.ones_like(hessian_II).fill_diagonal_(0)
    found = gptq(weight_OI, hessian_II, Grid(bits=4, group_size=32))
    assert "singular" in found.fallback
    assert torch.isfinite(found.dequantize()).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 0])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("order", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("weighs_inputs", [True, False])
def test_every_setting_beats_rounding(
    bits: int, group_size: int, symmetric: bool, order: tuple[bool, bool], weighs_inputs: bool
) -> None:
    generator = torch.Generator().manual_seed(bits)
    input_TI = torch.randn((300, 128), generator=generator) @ torch.randn((128, 128), generator=generator)
    hessian_II = input_TI.t() @ input_TI / 300
    weight_OI = torch.randn((24, 128), generator=generator)
    grid = Grid(bits=bits, group_size=group_size, symmetric=symmetric, searches_range=True, scale_dtype=torch.float32)
    settings = GptqSettings(activation_order=order[0], static_groups=order[1], weighs_inputs=weighs_inputs)
    found = gptq(weight_OI, hessian_II.clone(), grid, settings)
    plain = round_to_nearest(weight_OI, grid)
    error, alone = (output_error(each.dequantize() - weight_OI, hessian_II) for each in (found, plain))
    assert error < 0.7 * alone
    assert found.scales.scale_OG.shape == (24, 128 // (group_size or 128))
