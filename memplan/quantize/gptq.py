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

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from memplan.quantize.elements import nearest, values
from memplan.quantize.factor import inverse_factor, reorder
from memplan.quantize.grid import Grid, Quantized, Scales, dequantize, find_scales, round_to_nearest
from memplan.quantize.rows import row_slices
from memplan.records import dataclass, replace

_COLUMNS = 128  # features worked on before the rest is updated by one product
_FEW = 32  # of these, worked on before the others are
MOST_ROWS = 8192  # rounded at once: of matrices that read one input together, where they are small


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

    As `gptq_together`. Checked by: tests/quantize/test_gptq.py, against a solution by brute force.
    """
    return gptq_together([weight_OI], hessian_II, grid, settings)[0]


def gptq_together(
    weights_OI: Sequence[Tensor], hessian_II: Tensor, grid: Grid, settings: GptqSettings | None = None
) -> list[Quantized]:
    """Quantize matrices that read the same input, so that their outputs change least on its tokens.

    `hessian_II` is the mean of x x^T over tokens, float32; it is used up, and a quarter of its size is held beside it.
    In features that no token ever used are set to zero. Falls back on rounding to nearest when no damping makes the
    Hessian positive definite, and says so. `loss` of a result is tr(D H D^T), D the error of the weights.
    """
    settings = settings or GptqSettings()
    grid = grid.reaching(*weights_OI)
    importance_I = hessian_II.diagonal().clone()
    unused_I = importance_I == 0
    hessian_II.diagonal()[unused_I] = 1.0
    order_I = None
    if settings.activation_order:
        order_I = torch.argsort(importance_I, descending=True, stable=True)
        reorder(hessian_II, order_I)
    upper_II, damped = inverse_factor(hessian_II, settings.damping)
    found: list[Quantized] = []
    for group in rounded_at_once([weight_OI.shape[0] for weight_OI in weights_OI]):
        parts = []
        for rows in row_slices(sum(weights_OI[place].shape[0] for place in group), MOST_ROWS):
            # Several matrices are not more than MOST_ROWS together: only one alone is taken in parts.
            some = weights_OI[group[0]][rows] if len(group) == 1 else torch.cat([weights_OI[place] for place in group])
            used_OI = some.to(torch.float32, copy=True)
            used_OI[:, unused_I] = 0.0
            if upper_II is None:
                parts.append(_Part.plain(used_OI, grid, importance_I))
            else:
                weighing_I = importance_I if settings.weighs_inputs else None
                parts.append(_round(used_OI, upper_II, grid, weighing_I, order_I, settings.static_groups))
        whole = _Part.whole(parts)
        for part in whole.split([weights_OI[place].shape[0] for place in group]):
            if upper_II is None:
                why = "the Hessian is singular at every damping"
                found.append(Quantized(part.code_OI, part.scales, grid, fallback=why))
                continue
            damping = damped * _squared_error(part.code_OI, part.scales, grid, weights_OI[len(found)])
            loss = float(part.loss_O.sum()) - damping
            found.append(Quantized(part.code_OI, part.scales, grid, loss=max(0.0, loss)))
    return found


def rounded_at_once(num_rows: Sequence[int]) -> Iterator[list[int]]:
    """The places of matrices of so many rows, in groups that are rounded as one."""
    group: list[int] = []
    total = 0
    for place, rows in enumerate(num_rows):
        if group and total + rows > MOST_ROWS:
            yield group
            group, total = [], 0
        group, total = [*group, place], total + rows
    yield group


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of matrices on their grid, and what each row lost."""

    code_OI: Tensor
    scales: Scales
    loss_O: Tensor

    @staticmethod
    def plain(weight_OI: Tensor, grid: Grid, importance_I: Tensor) -> _Part:
        """Rows rounded to nearest."""
        found = round_to_nearest(weight_OI, grid, importance_I)
        return _Part(found.code_OI, found.scales, weight_OI.new_zeros(weight_OI.shape[0]))

    @staticmethod
    def whole(parts: Sequence[_Part]) -> _Part:
        """Parts, one below the other."""
        if len(parts) == 1:
            return parts[0]
        return _Part(
            torch.cat([part.code_OI for part in parts]),
            Scales(torch.cat([part.scales.scale_OG for part in parts]), torch.cat([p.scales.zero_OG for p in parts])),
            torch.cat([part.loss_O for part in parts]),
        )

    def split(self, num_rows: Sequence[int]) -> Iterator[_Part]:
        """The part of each matrix."""
        start = 0
        for count in num_rows:
            rows = slice(start, start + count)
            scales = Scales(self.scales.scale_OG[rows], self.scales.zero_OG[rows])
            yield _Part(self.code_OI[rows], scales, self.loss_O[rows])
            start += count


def _round(
    weight_OI: Tensor,
    upper_II: Tensor,
    grid: Grid,
    weighing_I: Tensor | None,
    order_I: Tensor | None,
    static_groups: bool,
) -> _Part:
    """Round rows, in features in `order_I` or as they stand."""
    scales = group_I = None
    if order_I is not None or static_groups:
        scales = find_scales(weight_OI, grid, weighing_I)
        place_I = torch.arange(weight_OI.shape[1], device=weight_OI.device) if order_I is None else order_I
        group_I = torch.div(place_I, grid.group(weight_OI.shape[1]), rounding_mode="floor")
    weight_IO = weight_OI.t().contiguous() if order_I is None else weight_OI.t()[order_I]
    code_IO, found, loss_O = _sweep(weight_IO, upper_II, grid, scales, weighing_I, group_I)
    code_IO = code_IO if order_I is None else code_IO[torch.argsort(order_I)]
    return _Part(code_IO.t().contiguous(), found, loss_O)


def _squared_error(code_OI: Tensor, scales: Scales, grid: Grid, weight_OI: Tensor) -> float:
    """The sum of squared errors of the weights, some rows at a time."""
    total = 0.0
    for rows in row_slices(code_OI.shape[0]):
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
) -> tuple[Tensor, Scales, Tensor]:
    """Round row after row of `weight_IO` (changed in place), and return codes (uint8, I x O), scales and losses (O).

    With `scales`, row i belongs to group `group_I[i]`; without, groups follow one another and find theirs on the way.
    What a row leaves over goes at once to the few rows that follow, to the rest of a block when those are done, and to
    all others after the block: few long passes over the matrix instead of many.
    """
    num_in, num_out = weight_IO.shape
    size = grid.group(num_in)
    few = _FEW if size % _FEW == 0 or _FEW % size == 0 else _COLUMNS
    code_IO = torch.empty((num_in, num_out), dtype=torch.uint8, device=weight_IO.device)
    levels = _Levels(grid, scales, group_I)
    loss_O = torch.zeros(num_out, device=weight_IO.device)
    for start in range(0, num_in, _COLUMNS):
        stop = min(start + _COLUMNS, num_in)
        error_BO = torch.empty_like(weight_IO[start:stop])
        pivots = upper_II.diagonal()[start:stop].tolist()
        weight_B, error_B = weight_IO[start:stop].unbind(), error_BO.unbind()
        for first in range(start, stop, few):
            last = min(first + few, stop)
            for row in range(first, last):
                i = row - start
                if scales is None and row % size == 0:
                    group_OS = _reached(weight_IO, upper_II, error_BO, start, i, size)
                    weighing_S = None if importance_I is None else importance_I[row : row + size]
                    levels.add(find_scales(group_OS, replace(grid, group_size=0), weighing_S))
                levels.round(row, weight_B[i], code_IO[row], error_B[i], pivots[i])
                if row + 1 < last:
                    weight_IO[row + 1 : last].addr_(upper_II[row, row + 1 : last], error_B[i], alpha=-1.0)
            if last < stop:
                error_SO = error_BO[first - start : last - start]
                weight_IO[last:stop].addmm_(upper_II[first:last, last:stop].t(), error_SO, alpha=-1.0)
        loss_O += error_BO.square().sum(0)
        if stop < num_in:
            weight_IO[stop:].addmm_(upper_II[start:stop, stop:].t(), error_BO, alpha=-1.0)
    return code_IO, levels.scales(), loss_O


class _Levels:
    """The values that a feature's weights may take: scales that are known, or added group after group."""

    def __init__(self, grid: Grid, scales: Scales | None, group_I: Tensor | None) -> None:
        self._grid, self._known = grid, scales
        self._scale: list[Tensor] = []
        self._zero: list[Tensor] = []
        self._low: list[Tensor] = []
        self._high: list[Tensor] = []
        self._groups: list[int] = []
        if scales is not None and group_I is not None:
            self._groups = group_I.tolist()
            self._take(scales)

    def _take(self, scales: Scales) -> None:
        zero_GO = scales.zero_OG.t().contiguous()
        self._scale += scales.scale_OG.t().contiguous().unbind()
        self._zero += zero_GO.unbind()
        self._low += zero_GO.neg().unbind()
        self._high += (self._grid.max_code - zero_GO).unbind()

    def add(self, scales: Scales) -> None:
        """The next group's."""
        self._take(scales)

    def scales(self) -> Scales:
        """All of them."""
        if self._known is not None:
            return self._known
        return Scales(torch.stack(self._scale, 1), torch.stack(self._zero, 1))

    def round(self, row: int, weight_O: Tensor, code_O: Tensor, error_O: Tensor, pivot: float) -> None:
        """Round a feature; `error_O` is set to what is left over, over the pivot."""
        group = self._groups[row] if self._groups else -1
        scale_O = self._scale[group]
        if self._grid.element == "int":
            value_O = torch.div(weight_O, scale_O).round_().clamp_(self._low[group], self._high[group])
            torch.add(value_O, self._zero[group], out=error_O)
            code_O.copy_(error_O)
        else:
            code_O.copy_(nearest(weight_O / scale_O, self._grid.element))
            value_O = values(code_O, self._grid.element)
        torch.addcmul(weight_O, value_O, scale_O, value=-1.0, out=error_O).div_(pivot)


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
