"""Grids: what rounding may cost, and what a searched range is worth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.errors import UsageError
from memplan.quantize.grid import Grid, dequantize, find_scales, round_to_grid, round_to_nearest

GRIDS = st.builds(
    Grid,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([0, 8, 16, 32]),
    symmetric=st.booleans(),
    searches_range=st.just(False),
    scale_dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)


def matrix(seed: int, num_out: int = 5, num_in: int = 64, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((num_out, num_in), generator=generator) * spread


@settings(max_examples=60)
@given(grid=GRIDS, seed=st.integers(0, 1000), spread=st.sampled_from([1e-3, 1.0, 100.0]))
def test_no_weight_is_further_off_than_the_scale_allows(grid: Grid, seed: int, spread: float) -> None:
    weight_OI = matrix(seed, spread=spread)
    found = round_to_nearest(weight_OI, grid)
    scale_OI = found.scales.scale_OG.repeat_interleave(grid.group(64), 1)
    # Half a step, another half where the zero point is rounded, and what a scale loses in the type it is stored in.
    steps = (0.51 if grid.symmetric else 1.01) + (0.0 if grid.scale_dtype == torch.float32 else 0.004 * grid.max_code)
    assert bool(((found.dequantize() - weight_OI).abs() <= scale_OI * steps).all())
    assert int(found.code_OI.max()) <= grid.max_code


@settings(max_examples=40)
@given(grid=GRIDS, seed=st.integers(0, 1000))
def test_rounding_what_was_rounded_changes_nothing(grid: Grid, seed: int) -> None:
    found = round_to_nearest(matrix(seed), grid)
    again_OI = round_to_grid(found.dequantize(), found.scales, grid)
    assert torch.equal(again_OI, found.code_OI)
    assert torch.equal(dequantize(again_OI, found.scales, grid), found.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("importance", ["none", "features", "blocks"])
def test_a_searched_range_never_costs_more_than_the_whole_one(symmetric: bool, importance: str) -> None:
    weight_OI = matrix(3, num_out=40)
    weight_OI[:, ::17] *= 6
    input_TI = matrix(4, num_out=200)
    blocks_GSS = torch.stack([part.t() @ part for part in input_TI.split(32, 1)])
    weighing = {"none": None, "features": input_TI.square().sum(0), "blocks": blocks_GSS}[importance]

    def cost(searches: bool) -> float:
        grid = Grid(bits=4, group_size=32, symmetric=symmetric, searches_range=searches)
        error_OI = round_to_nearest(weight_OI, grid, weighing).dequantize() - weight_OI
        if importance == "none":
            return float(error_OI.abs().pow(2.4).sum())
        if importance == "features":
            return float((error_OI.square() * input_TI.square().sum(0)).sum())
        return sum(
            float((part @ block * part).sum()) for part, block in zip(error_OI.split(32, 1), blocks_GSS, strict=True)
        )

    assert cost(searches=True) < cost(searches=False)


def test_a_symmetric_grid_has_its_zero_in_the_middle_and_an_asymmetric_one_holds_zero_exactly() -> None:
    weight_OI = matrix(1).abs() + 0.5
    weight_OI[:, 0] = 0.0
    symmetric = round_to_nearest(weight_OI, Grid(bits=4, group_size=32))
    assert float(symmetric.scales.zero_OG.unique()) == 8
    asymmetric = round_to_nearest(weight_OI, Grid(bits=4, group_size=32, symmetric=False))
    assert float(asymmetric.dequantize()[:, 0].abs().max()) == 0


def test_a_group_of_zeros_stays_zeros() -> None:
    weight_OI = matrix(1)
    weight_OI[2, 32:] = 0.0
    for symmetric in (True, False):
        found = round_to_nearest(weight_OI, Grid(bits=4, group_size=32, symmetric=symmetric))
        assert float(found.dequantize()[2, 32:].abs().max()) == 0


def test_rows_worked_on_in_parts_are_the_same_as_all_at_once() -> None:
    weight_OI = matrix(5, num_out=1500)
    grid = Grid(bits=4, group_size=32, searches_range=True)
    whole = find_scales(weight_OI, grid)
    assert torch.equal(whole.scale_OG[1100:1110], find_scales(weight_OI[1100:1110], grid).scale_OG)


@pytest.mark.parametrize("bits", [1, 9])
def test_a_width_that_no_format_has_is_refused(bits: int) -> None:
    with pytest.raises(UsageError, match="not a width"):
        Grid(bits=bits)


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="do not divide 48"):
        round_to_nearest(matrix(0, num_in=48), Grid(bits=4, group_size=32))
