"""AWQ and SmoothQuant: scalings that help, and their losses."""

from __future__ import annotations

import torch

from memplan.quantize.awq import awq, output_error, search_scaling
from memplan.quantize.grid import Grid, Scales, dequantize, find_scales, round_to_grid, round_to_nearest
from memplan.quantize.smooth import round_activations, search_smoothing


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights, and tokens of which a few features are far larger than the rest, as in language models."""
    generator = torch.Generator().manual_seed(0)
    input_TI = torch.randn((600, 64), generator=generator)
    input_TI[:, ::16] *= 30
    return torch.randn((48, 64), generator=generator) * 0.1, input_TI


def test_a_scaling_lowers_the_error_where_some_inputs_are_far_larger() -> None:
    weight_OI, input_TI = problem()
    hessian_II = input_TI.t() @ input_TI / 600
    grid = Grid(bits=4, group_size=32, symmetric=False)
    found = search_scaling([weight_OI], hessian_II, input_TI.abs().mean(0), grid)
    assert found.loss < 0.6 * found.plain_loss
    rounded_OI = round_to_nearest(weight_OI * found.scale_I, grid).dequantize() / found.scale_I
    assert abs(output_error(rounded_OI - weight_OI, hessian_II) / found.loss - 1) < 1e-4


def test_a_scaling_is_the_same_for_features_that_must_be_scaled_alike() -> None:
    weight_OI, input_TI = problem()

    def shared(value_I: torch.Tensor) -> torch.Tensor:
        return value_I.reshape(2, 32).mean(0).repeat(2)

    hessian_II = input_TI.t() @ input_TI / 600
    grid = Grid(bits=4, group_size=32, symmetric=False)
    found = search_scaling([weight_OI], hessian_II, shared(input_TI.abs().mean(0)), grid, shared=shared)
    assert torch.equal(found.scale_I[:32], found.scale_I[32:])


def test_clipped_ranges_cost_no_more_than_whole_ones() -> None:
    weight_OI, input_TI = problem()
    hessian_II = input_TI.t() @ input_TI / 600
    grid = Grid(bits=3, group_size=32, symmetric=False)
    clipped, whole = awq(weight_OI, hessian_II, grid), round_to_nearest(weight_OI, grid)
    assert clipped.loss <= output_error(whole.dequantize() - weight_OI, hessian_II)
    assert abs(output_error(clipped.dequantize() - weight_OI, hessian_II) / clipped.loss - 1) < 1e-4


def test_smoothing_lowers_the_error_of_rounded_activations() -> None:
    weight_OI, input_TI = problem()
    grid = Grid(bits=8, activation_bits=8)
    found = search_smoothing([weight_OI], input_TI.abs().amax(0), input_TI[:200], grid)
    assert found.loss < 0.5 * found.plain_loss


def test_smoothing_lowers_the_error_of_rows_of_weights_where_activations_stay() -> None:
    weight_OI, input_TI = problem()
    factor_I = torch.ones(64)
    factor_I[::16] = 30
    weight_OI /= factor_I  # what reads large inputs is small, and shares its row's scale with what is not
    grid = Grid(bits=8)
    found = search_smoothing([weight_OI], input_TI.abs().amax(0), input_TI[:200], grid)
    assert found.loss < 0.2 * found.plain_loss
    rounded_OI = round_to_nearest(weight_OI * found.scale_I, grid).dequantize() / found.scale_I
    lost = (input_TI[:200] @ (rounded_OI - weight_OI).t()).square().sum() / 200
    assert abs(float(lost) / found.loss - 1) < 1e-3


def test_scales_are_those_that_the_codes_want() -> None:
    weight_OI, input_TI = problem()
    hessian_II = input_TI.t() @ input_TI / 600
    block_GSS = torch.stack([hessian_II[:32, :32], hessian_II[32:, 32:]])
    grid = Grid(bits=3, group_size=32, symmetric=False, searches_range=True, scale_dtype=torch.float32)

    def loss(scales: Scales) -> torch.Tensor:
        error_OI = dequantize(round_to_grid(weight_OI, scales, grid), scales, grid) - weight_OI
        error_GOS = error_OI.reshape(48, 2, 32).transpose(0, 1)
        return (error_GOS @ block_GSS * error_GOS).sum(-1).t()

    found = find_scales(weight_OI, grid, block_GSS)
    for factor in (0.98, 0.99, 1.01, 1.02):
        assert loss(found).sum() < loss(Scales(found.scale_OG * factor, found.zero_OG)).sum()
    for step in (-1, 1):
        beside = Scales(found.scale_OG, (found.zero_OG + step).clamp(0, 7))
        assert bool((loss(found) <= loss(beside) * 1.0001).float().mean() > 0.9)


def test_a_token_is_rounded_by_its_own_largest_value() -> None:
    input_NI = torch.tensor([[127.0, 1.4, -3.0], [1.27, 0.014, 0.0]])
    assert torch.allclose(round_activations(input_NI), torch.tensor([[127.0, 1.0, -3.0], [1.27, 0.01, 0.0]]))
