"""GPTQ: weights are rounded one in feature after another, and what is left over is made up for by those still to come.

Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, arXiv 2210.17323.
With H = X X^T over the calibration tokens, rounding feature j with error e costs e^2 / U_jj^2, where H^-1 = U^T U and U
is upper triangular; the best answer of the features after j is to subtract e / U_jj times row j of U.

Axes: O out features, I in features, B features of a block of columns, G groups.

The order of activation (features that matter most first, while there are most left to make up for them) keeps each
feature in the group that it stands in, with scales found beforehand: files need no `g_idx`, which engines no longer
load. Without it, a group's scales are found when its first feature is reached, on weights that made up for others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memplan.quantize.elements import nearest, values
from memplan.quantize.factor import inverse_factor, reorder
from memplan.quantize.grid import Grid, Quantized, Scales, dequantize, find_scales, round_to_nearest
from memplan.records import dataclass, replace

_COLUMNS = 128  # features worked on before the rest is updated by one product
_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqSettings:
    """How GPTQ works: `damping` is added to the Hessian's diagonal, as a part of its mean.

    `static_groups` finds all scales beforehand, which an order of activation needs in any case. `weighs_inputs` says
    that scales are searched for the errors of outputs, by how large inputs are; else for those of weights.
    """

    damping: float = 0.01
    activation_order: bool = True
    static_groups: bool = False
    weighs_inputs: bool = True


def gptq(weight_OI: Tensor, hessian_II: Tensor, grid: Grid, settings: GptqSettings | None = None) -> Quantized:
    """Quantize a matrix so that its outputs change least on the tokens that `hessian_II` was summed over.

    `hessian_II` is the mean of x x^T over tokens, float32; it is used up, and a quarter of its size is held beside it.
    In features that no token ever used are set to zero. Falls back on rounding to nearest when no damping makes the
    Hessian positive definite, and says so. `loss` of the result is tr(D H D^T), D the error of the weights.

    Checked by: tests/quantize/test_gptq.py, against a solution by brute force.
    """
    settings = settings or GptqSettings()
    grid = grid.reaching(weight_OI)
    importance_I = hessian_II.diagonal().clone()
    unused_I = importance_I == 0
    hessian_II.diagonal()[unused_I] = 1.0
    num_in = weight_OI.shape[1]
    used_OI = weight_OI.to(torch.float32, copy=True)
    used_OI[:, unused_I] = 0.0
    size = grid.group(num_in)
    scales = group_I = None
    order_I = torch.arange(num_in, device=weight_OI.device)
    weighing_I = importance_I if settings.weighs_inputs else None
    if settings.activation_order or settings.static_groups:
        scales = find_scales(used_OI, grid, weighing_I)
        group_I = torch.div(order_I, size, rounding_mode="floor")
    if settings.activation_order:
        order_I = torch.argsort(importance_I, descending=True, stable=True)
        group_I = torch.div(order_I, size, rounding_mode="floor")
        reorder(hessian_II, order_I)
    upper_II, damped = inverse_factor(hessian_II, settings.damping)
    if upper_II is None:
        plain = round_to_nearest(used_OI, grid, importance_I)
        return Quantized(plain.code_OI, plain.scales, grid, fallback="the Hessian is singular at every damping")
    weight_IO = used_OI.t()[order_I].contiguous()
    del used_OI
    code_IO, found, loss = _sweep(weight_IO, upper_II, grid, scales, weighing_I, group_I)
    code_OI = code_IO[torch.argsort(order_I)].t().contiguous()
    return Quantized(
        code_OI, found, grid, loss=max(0.0, loss - damped * _squared_error(code_OI, found, grid, weight_OI))
    )


def _squared_error(code_OI: Tensor, scales: Scales, grid: Grid, weight_OI: Tensor) -> float:
    """The sum of squared errors of the weights, some rows at a time."""
    total = 0.0
    for start in range(0, code_OI.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        error_OI = dequantize(code_OI[rows], Scales(scales.scale_OG[rows], scales.zero_OG[rows]), grid)
        total += float(error_OI.sub_(weight_OI[rows]).square_().sum())
    return total


def _sweep(
    weight_IO: Tensor,
    upper_II: Tensor,
    grid: Grid,
    scales: Scales | None,
    importance_I: Tensor | None,
    group_I: Tensor | None,
) -> tuple[Tensor, Scales, float]:
    """Round row after row of `weight_IO` (changed in place), and return codes (uint8, I x O), scales and loss.

    With `scales`, row i belongs to group `group_I[i]`; without, groups follow one another and find theirs on the way.
    """
    num_in, num_out = weight_IO.shape
    size = grid.group(num_in)
    code_IO = torch.empty((num_in, num_out), dtype=torch.uint8, device=weight_IO.device)
    found_scale_GO: list[Tensor] = []
    found_zero_GO: list[Tensor] = []
    scale_GO = zero_GO = None
    groups: list[int] = []
    if scales is not None and group_I is not None:
        scale_GO, zero_GO = scales.scale_OG.t().contiguous(), scales.zero_OG.t().contiguous()
        groups = group_I.tolist()
    loss = 0.0
    for start in range(0, num_in, _COLUMNS):
        stop = min(start + _COLUMNS, num_in)
        block_BO = weight_IO[start:stop]
        error_BO = torch.empty_like(block_BO)
        upper_BB = upper_II[start:stop, start:stop]
        pivots = upper_BB.diagonal().tolist()
        for i in range(stop - start):
            row = start + i
            if scale_GO is None or zero_GO is None:
                if row % size == 0:
                    group_OS = _reached(weight_IO, upper_II, error_BO, start, i, size)
                    weighing_S = None if importance_I is None else importance_I[row : row + size]
                    here = find_scales(group_OS, replace(grid, group_size=0), weighing_S)
                    found_scale_GO.append(here.scale_OG[:, 0])
                    found_zero_GO.append(here.zero_OG[:, 0])
                scale_O, zero_O = found_scale_GO[-1], found_zero_GO[-1]
            else:
                scale_O, zero_O = scale_GO[groups[row]], zero_GO[groups[row]]
            weight_O = block_BO[i]
            if grid.element == "int":
                code_O = torch.div(weight_O, scale_O).round_().add_(zero_O).clamp_(0, grid.max_code)
                code_IO[row] = code_O
                value_O = code_O.sub_(zero_O)
            else:
                code_IO[row] = nearest(weight_O / scale_O, grid.element)
                value_O = values(code_IO[row], grid.element)
            error_O = value_O.mul_(scale_O).sub_(weight_O).div_(-pivots[i])
            error_BO[i] = error_O
            if i + 1 < stop - start:
                block_BO[i + 1 :].addr_(upper_BB[i, i + 1 :], error_O, alpha=-1.0)
        loss += float(error_BO.square().sum())
        if stop < num_in:
            weight_IO[stop:].addmm_(upper_II[start:stop, stop:].t(), error_BO, alpha=-1.0)
    if scales is None:
        scales = Scales(torch.stack(found_scale_GO, 1), torch.stack(found_zero_GO, 1))
    return code_IO, scales, loss


def _reached(weight_IO: Tensor, upper_II: Tensor, error_BO: Tensor, start: int, i: int, size: int) -> Tensor:
    """The weights (O x S) of the group that begins at row `start + i`, with all that was made up so far.

    Rows of the block that is being worked on are up to date; rows beyond it still lack the block's own errors.
    """
    row, end = start + i, start + i + size
    group_SO = weight_IO[row:end]
    edge = start + _COLUMNS
    if end > edge and i:
        group_SO = group_SO.clone()
        group_SO[edge - row :].addmm_(upper_II[start:row, edge:end].t(), error_BO[:i], alpha=-1.0)
    return group_SO.t().contiguous()
