"""AWQ: in features that matter are made larger before rounding, and what feeds them smaller by as much.

Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration, arXiv 2306.00978. The paper
runs the block for every candidate; here the error of the linear layers' outputs is computed from the Hessian that the
calibration left, exactly and without running anything: with D the error of the weights it is tr(D H D^T).

Axes: O out features, I in features, R rows that are looked at, G groups, S in features of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from memplan.quantize.grid import (
    Grid,
    Quantized,
    Scales,
    dequantize,
    find_scales,
    round_to_grid,
    round_to_nearest,
)
from memplan.quantize.rows import evenly_spaced, row_slices
from memplan.records import dataclass, replace

_STEPS = 20
# A layer's rows are alike: so many of them, evenly spaced, rank the candidates as all of them do.
_SEARCHED_ROWS = 128
_PARTS, _LEAST_PART = 8, 128  # of a Hessian's rows
_ROWS = 512  # that stand for all where a loss is told, and that are worked on at a time
_SMALLEST = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The best scaling of a group of layers that read the same input: weights times `scale_I`, the input over it.

    `loss` is the error of the outputs with it, `plain_loss` without (scales of 1), over the rows that were looked at.
    """

    scale_I: Tensor
    loss: float
    plain_loss: float


def search_scaling(
    weights_OI: Sequence[Tensor],
    hessian_II: Tensor,
    magnitude_I: Tensor,
    grid: Grid,
    *,
    shared: Callable[[Tensor], Tensor] = lambda value_I: value_I,
) -> Scaling:
    """Return the scaling under which rounding `weights_OI` costs their common outputs least.

    `hessian_II` is the mean of x x^T and `magnitude_I` the mean of |x| over the calibration tokens. `shared` makes a
    value the same for in features that must be scaled alike.
    """
    grid = replace(grid, searches_range=False)
    rows_RI = torch.cat([weight_OI[evenly_spaced(len(weight_OI), _SEARCHED_ROWS)].float() for weight_OI in weights_OI])
    plain = best = _loss(rows_RI, None, hessian_II, grid)
    best_I = torch.ones_like(magnitude_I)
    for scale_I in _candidates(magnitude_I, shared(_relative_magnitude(weights_OI, grid))):
        loss = _loss(rows_RI, scale_I, hessian_II, grid)
        if loss < best:
            best, best_I = loss, scale_I
    return Scaling(scale_I=best_I, loss=best, plain_loss=plain)


def awq(weight_OI: Tensor, hessian_II: Tensor, grid: Grid) -> Quantized:
    """Quantize a matrix whose in features are scaled already: round to nearest, with ranges clipped where it pays.

    AutoAWQ leaves the ranges of queries and keys whole, for a product of two errors follows them; with the exact error
    of their outputs clipping them pays as well (docs/quantize.md).
    """
    weight_OI = weight_OI.to(torch.float32)
    size = grid.group(weight_OI.shape[1])
    searching = replace(grid, searches_range=True)
    scales = find_scales(weight_OI, searching, _blocks(hessian_II, size))
    found = Quantized(round_to_grid(weight_OI, scales, searching), scales, grid)
    return _with_loss(found, weight_OI, hessian_II)


def output_error(error_OI: Tensor, hessian_II: Tensor) -> float:
    """The mean over tokens of the squared error that `error_OI` makes in a layer's outputs, summed over outputs."""
    total = 0.0
    for row in range(0, error_OI.shape[0], _ROWS):
        part_OI = error_OI[row : row + _ROWS]
        # The Hessian is symmetric: from the diagonal on is enough, what is beside it twice.
        for place in row_slices(hessian_II.shape[0], max(_LEAST_PART, -(-hessian_II.shape[0] // _PARTS))):
            weighed_OJ = (part_OI[:, place] @ hessian_II[place, place.start :]).mul_(part_OI[:, place.start :])
            size = place.stop - place.start
            total += float(weighed_OJ[:, :size].sum()) + 2 * float(weighed_OJ[:, size:].sum())
    return total


def _with_loss(found: Quantized, weight_OI: Tensor, hessian_II: Tensor) -> Quantized:
    """The same with its loss, estimated from some of its rows."""
    rows = evenly_spaced(len(weight_OI), _ROWS)
    some_RI = weight_OI[rows]
    scales = Scales(found.scales.scale_OG[rows], found.scales.zero_OG[rows])
    loss = output_error(dequantize(found.code_OI[rows], scales, found.grid).sub_(some_RI), hessian_II)
    return replace(found, loss=loss * weight_OI.shape[0] / some_RI.shape[0])


def _blocks(hessian_II: Tensor, size: int) -> Tensor:
    """The diagonal blocks of the Hessian, one for every group (G x S x S)."""
    num_groups = hessian_II.shape[0] // size
    index = torch.arange(num_groups, device=hessian_II.device)
    return hessian_II.reshape(num_groups, size, num_groups, size)[index, :, index, :]


def _relative_magnitude(weights_OI: Sequence[Tensor], grid: Grid) -> Tensor:
    """How large each in feature's weights are beside the largest of their group, on average over rows (I)."""
    total_I: Tensor | None = None
    num_rows = 0
    for weight_OI in weights_OI:
        num_in = weight_OI.shape[1]
        for rows in row_slices(weight_OI.shape[0]):
            weight_OGS = (
                weight_OI[rows].to(torch.float32).abs().reshape(-1, num_in // grid.group(num_in), grid.group(num_in))
            )
            part_I = weight_OGS.div_(weight_OGS.amax(-1, keepdim=True).clamp_(min=1e-12)).reshape(-1, num_in).sum(0)
            total_I = part_I if total_I is None else total_I + part_I
        num_rows += weight_OI.shape[0]
    assert total_I is not None
    return total_I / num_rows


def _candidates(magnitude_I: Tensor, weight_I: Tensor) -> Iterator[Tensor]:
    """Scales by how large the input is, alone and against how large the weights are, from none of it to all."""
    magnitude_I, weight_I = magnitude_I.clamp(min=_SMALLEST), weight_I.clamp(min=_SMALLEST)
    for step in range(1, _STEPS + 1):
        part = step / _STEPS
        for scale_I in (magnitude_I**part, magnitude_I**part / weight_I ** (1 - part)):
            yield scale_I / (scale_I.max() * scale_I.min()).sqrt()


def _loss(rows_RI: Tensor, scale_I: Tensor | None, hessian_II: Tensor, grid: Grid) -> float:
    scaled_RI = rows_RI if scale_I is None else rows_RI * scale_I
    error_RI = round_to_nearest(scaled_RI, grid).dequantize()
    if scale_I is not None:
        error_RI /= scale_I
    return output_error(error_RI.sub_(rows_RI), hessian_II)
