"""Grids: what a weight may be stored as, and the scales that fit a matrix best.

Axes: O out features, I in features, G groups of in features (I // group_size; 1 for whole rows), S features of a group.

Integer codes are unsigned here, 0 to 2**bits - 1, with a zero point in the middle for a symmetric grid; a file format
shifts them as it likes. A weight is `(code - zero) * scale`, or the scale times the float that a code stands for.
Scales are rounded to the type that they will be stored in *before* codes are chosen, so that what is measured is what
is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memplan.errors import UsageError
from memplan.quantize.elements import LARGEST, nearest, values
from memplan.quantize.methods import Element, ScaleType
from memplan.quantize.rows import row_slices
from memplan.records import dataclass, replace

# The search for scales that clip a little tries ranges from the whole one down to this part of it.
_SMALLEST_RANGE = 0.4
_NUM_RANGES = 31
_REFITS = 2
_ROWS = 1024  # worked on at a time, so that what is held beside a matrix stays small
# Large errors cost a model more than their square says; GPTQ's own search uses this power. Source: IST-DASLab/gptq.
_ERROR_POWER = 2.4
_LARGEST_SCALE = 448.0  # of NVFP4's groups, which are e4m3 floats: the largest group of a tensor gets it
_SMALLEST_SCALE = 2.0**-9
_EXPONENTS = 127  # the most that a scale of MXFP4 may be a power of
PART_OF_ABSMAX = 7.874015718698502e-3  # 1 / 127 as bitsandbytes 0.50 multiplies by it


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A grid: `bits` wide, one scale for every `group_size` in features (0: for a whole row).

    `searches_range`: clip a little where that lowers the error, instead of always covering the largest weight.
    `activation_bits` is the width that an engine rounds inputs to beside these weights, 16 for none.
    `rows_per_scale` rows share a scale, 0 for all. `largest` is the largest weight of all layers that an engine
    fuses into one, where their scales hang together; 0 is that of the matrix itself.
    """

    bits: int
    group_size: int = 0
    symmetric: bool = True
    searches_range: bool = False
    scale_dtype: Any = torch.bfloat16
    activation_bits: int = 16
    element: Element = "int"
    rows_per_scale: int = 1
    scale_type: ScaleType = "model"
    largest: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"not a width that is supported: {self.bits} bits", hint="use 2 to 8")
        if self.group_size < 0 or self.group_size % 8:
            raise UsageError(f"not a group size: {self.group_size}", hint="use 32, 64, 128, or 0 for whole rows")

    @property
    def max_code(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def depends_on_largest(self) -> bool:
        """Whether scales hang on the largest weight of the matrix, and of those that it is fused with."""
        return self.rows_per_scale == 0 or self.scale_type == "e4m3"

    def reaching(self, *weights_OI: Tensor) -> Grid:
        """The same grid with `largest` filled in from the layers that an engine fuses."""
        if not self.depends_on_largest or self.largest:
            return self
        return replace(self, largest=max(float(weight_OI.abs().max()) for weight_OI in weights_OI))

    def group(self, num_in: int) -> int:
        """How many in features share a scale. Raises: UsageError where groups do not divide `num_in`."""
        size = self.group_size or num_in
        if num_in % size:
            raise UsageError(
                f"groups of {size} do not divide {num_in} in features", hint="use a smaller --group-size, or 0 for rows"
            )
        return size


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales and zero points of a matrix, both float32 and of shape (O, G)."""

    scale_OG: Tensor
    zero_OG: Tensor


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix on its grid: codes (uint8, O x I), scales and zero points (float32, O x G), and the grid.

    `loss` is the output error that the method measured, summed over rows; `fallback` says why a simpler method was
    used, if one was. `input_scale` is what inputs are divided by before an engine rounds them, 0 where it finds out.
    """

    code_OI: Tensor
    scales: Scales
    grid: Grid
    loss: float = 0.0
    fallback: str = ""
    input_scale: float = 0.0

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights (O x I) that a reader of the file computes."""
        return dequantize(self.code_OI, self.scales, self.grid).to(dtype)


def find_scales(weight_OI: Tensor, grid: Grid, importance: Tensor | None = None) -> Scales:
    """Return the scales that fit `weight_OI` (float32) best.

    `importance` says what errors cost, where the range is searched: the mean square of what each in feature is
    multiplied by (I), or the groups' own blocks of the Hessian (G x S x S), which know that errors cancel, and say what
    scale the codes of integers want once they are chosen.
    """
    grid = grid.reaching(weight_OI)
    num_out, num_in = weight_OI.shape
    if grid.rows_per_scale != 1:
        return _shared_scales(weight_OI, grid)
    if num_out > _ROWS:
        parts = [find_scales(weight_OI[row : row + _ROWS], grid, importance) for row in range(0, num_out, _ROWS)]
        return Scales(torch.cat([part.scale_OG for part in parts]), torch.cat([part.zero_OG for part in parts]))
    size = grid.group(num_in)
    weight_OGS = weight_OI.reshape(num_out, num_in // size, size)
    low_OG, high_OG = weight_OGS.amin(-1).clamp_(max=0), weight_OGS.amax(-1).clamp_(min=0)
    if grid.symmetric:
        high_OG = torch.maximum(high_OG, -low_OG)
        low_OG = -high_OG
    best = _scales(low_OG, high_OG, grid)
    if not grid.searches_range:
        return best
    tried = _Tried(weight_OGS, grid, importance, best)
    for part in torch.linspace(1.0, _SMALLEST_RANGE, _NUM_RANGES)[1:].tolist():
        tried.add(_scales(low_OG * part, high_OG * part, grid))
    if grid.element == "int" and importance is not None and importance.dim() == 3:
        for _ in range(_REFITS):
            _refit(tried, importance)
    return tried.best


class _Tried:
    """The best scales of those that were tried, group by group and row by row."""

    def __init__(self, weight_OGS: Tensor, grid: Grid, importance: Tensor | None, first: Scales) -> None:
        self.weight_OGS, self.grid, self._importance = weight_OGS, grid, importance
        self.best, self._error_OG = first, _error(weight_OGS, first, grid, importance)

    def add(self, scales: Scales) -> None:
        """Try others, and take them where they are better."""
        error_OG = _error(self.weight_OGS, scales, self.grid, self._importance)
        is_better = error_OG < self._error_OG
        self._error_OG = torch.where(is_better, error_OG, self._error_OG)
        self.best = Scales(
            torch.where(is_better, scales.scale_OG, self.best.scale_OG),
            torch.where(is_better, scales.zero_OG, self.best.zero_OG),
        )


def _refit(tried: _Tried, importance_GSS: Tensor) -> None:
    """Try the zero points beside the best, then the scale that its codes want: with z the codes less their zero point
    and B a group's block of the Hessian, (w - s z) B (w - s z) is least where s = z B w / z B z.
    """
    grid = tried.grid
    for step in () if grid.symmetric else (-1, 1):
        zero_OG = (tried.best.zero_OG + step).clamp_(0, grid.max_code)
        tried.add(Scales(tried.best.scale_OG, zero_OG))
    best = tried.best
    code_GOS = _codes(tried.weight_OGS, best, grid).sub_(best.zero_OG[..., None]).transpose(0, 1)
    weighed_GOS = code_GOS @ importance_GSS
    wanted_GO = (weighed_GOS * tried.weight_OGS.transpose(0, 1)).sum(-1)
    scale_OG = wanted_GO.div_(weighed_GOS.mul_(code_GOS).sum(-1)).t().to(grid.scale_dtype).to(torch.float32)
    is_sound = scale_OG.isfinite() & (scale_OG > 0)
    tried.add(Scales(torch.where(is_sound, scale_OG, best.scale_OG), best.zero_OG))


def round_to_grid(weight_OI: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """Return the codes (uint8, O x I) of `weight_OI` rounded to nearest."""
    code_OI = torch.empty(weight_OI.shape, dtype=torch.uint8, device=weight_OI.device)
    for row in range(0, weight_OI.shape[0], _ROWS):
        part_OI = weight_OI[row : row + _ROWS]
        rows = Scales(scales.scale_OG[row : row + _ROWS], scales.zero_OG[row : row + _ROWS])
        part_OGS = part_OI.reshape(part_OI.shape[0], scales.scale_OG.shape[1], -1)
        code_OI[row : row + _ROWS] = _codes(part_OGS, rows, grid).reshape(part_OI.shape)
    return code_OI


def dequantize(code_OI: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """Return the float32 weights (O x I) of codes."""
    weight_OI = torch.empty(code_OI.shape, dtype=torch.float32, device=code_OI.device)
    for rows in row_slices(code_OI.shape[0]):
        scale_OG1 = scales.scale_OG[rows, :, None]
        code_OGS = code_OI[rows].reshape(*scale_OG1.shape[:2], -1)
        if grid.element == "int":
            part_OGS = code_OGS.to(torch.float32).sub_(scales.zero_OG[rows, :, None])
        else:
            part_OGS = values(code_OGS, grid.element)
        weight_OI[rows] = part_OGS.mul_(scale_OG1).flatten(1)
    return weight_OI


def round_to_nearest(weight_OI: Tensor, grid: Grid, importance: Tensor | None = None) -> Quantized:
    """Round every weight by itself: the baseline that every method is measured against."""
    weight_OI = weight_OI.to(torch.float32)
    grid = grid.reaching(weight_OI)
    scales = find_scales(weight_OI, grid, importance)
    return Quantized(round_to_grid(weight_OI, scales, grid), scales, grid)


def _scales(low_OG: Tensor, high_OG: Tensor, grid: Grid) -> Scales:
    """The scales that spread the codes over a range. A range of nothing gets scale 1, so that zeros stay zeros."""
    if grid.element != "int":
        return _float_scales(high_OG, grid)
    if grid.scale_type == "absmax":
        return Scales(high_OG * PART_OF_ABSMAX, torch.full_like(high_OG, (grid.max_code + 1) / 2))
    scale_OG = (high_OG - low_OG) / grid.max_code
    scale_OG = torch.where(scale_OG > 0, scale_OG, torch.ones_like(scale_OG))
    stored_OG = scale_OG.to(grid.scale_dtype).to(torch.float32)
    # A range too small for the stored type keeps a scale that is not zero.
    scale_OG = torch.where(stored_OG > 0, stored_OG, torch.full_like(stored_OG, torch.finfo(grid.scale_dtype).tiny))
    if grid.symmetric:
        return Scales(scale_OG, torch.full_like(scale_OG, (grid.max_code + 1) / 2))
    return Scales(scale_OG, (-low_OG / scale_OG).round_().clamp_(0, grid.max_code))


def _float_scales(high_OG: Tensor, grid: Grid) -> Scales:
    """The scales under which the largest weight is the largest float, as they are stored."""
    scale_OG = high_OG / LARGEST[grid.element]
    if grid.scale_type == "e4m3":
        whole = whole_scale(grid)
        stored_OG = (scale_OG * whole).clamp_(max=_LARGEST_SCALE).to(torch.float8_e4m3fn).to(torch.float32)
        scale_OG = stored_OG.clamp_(min=_SMALLEST_SCALE) / whole
    elif grid.scale_type == "e8m0":
        exponent_OG = torch.log2(scale_OG.clamp(min=2.0**-_EXPONENTS)).ceil_().clamp_(-_EXPONENTS, _EXPONENTS)
        scale_OG = torch.exp2(exponent_OG)
    else:
        dtype = torch.float32 if grid.scale_type == "float32" else grid.scale_dtype
        scale_OG = torch.where(scale_OG > 0, scale_OG, torch.ones_like(scale_OG)).to(dtype).to(torch.float32)
        scale_OG = scale_OG.clamp_(min=torch.finfo(dtype).tiny)
    return Scales(scale_OG, torch.zeros_like(scale_OG))


def whole_scale(grid: Grid) -> float:
    """What NVFP4 multiplies the scales of all groups of a matrix by, so that the largest of them is an e4m3 float's."""
    if not grid.largest:
        return 1.0
    return float(torch.tensor(_LARGEST_SCALE * LARGEST[grid.element] / grid.largest, dtype=torch.float32))


def _shared_scales(weight_OI: Tensor, grid: Grid) -> Scales:
    """Scales that rows share: of blocks, or of the whole matrix and those that it is fused with. All stand in O x G."""
    num_out, num_in = weight_OI.shape
    size = grid.group(num_in)
    if grid.rows_per_scale == 0:
        high_OG = torch.full((num_out, num_in // size), grid.largest, device=weight_OI.device)
        return _scales(-high_OG, high_OG, grid)
    high_OG = weight_OI.abs().reshape(num_out, num_in // size, size).amax(-1)
    for row in range(0, num_out, grid.rows_per_scale):
        rows = slice(row, row + grid.rows_per_scale)
        high_OG[rows] = high_OG[rows].amax(0)
    return _scales(-high_OG, high_OG, grid)


def _codes(weight_OGS: Tensor, scales: Scales, grid: Grid) -> Tensor:
    """Codes of integers as float32, of other elements as uint8."""
    if grid.element != "int":
        return nearest(weight_OGS / scales.scale_OG[..., None], grid.element)
    code_OGS = weight_OGS / scales.scale_OG[..., None]
    return code_OGS.round_().add_(scales.zero_OG[..., None]).clamp_(0, grid.max_code)


def _error(weight_OGS: Tensor, scales: Scales, grid: Grid, importance: Tensor | None) -> Tensor:
    """What rounding costs, by group and row (O x G)."""
    error_OGS = _codes(weight_OGS, scales, grid)
    error_OGS = values(error_OGS, grid.element) if grid.element != "int" else error_OGS.sub_(scales.zero_OG[..., None])
    error_OGS.mul_(scales.scale_OG[..., None]).sub_(weight_OGS)
    if importance is None:
        return error_OGS.abs_().pow_(_ERROR_POWER).sum(-1)
    if importance.dim() == 1:
        return error_OGS.square_().mul_(importance.reshape(1, *error_OGS.shape[1:])).sum(-1)
    error_GOS = error_OGS.transpose(0, 1)
    return (error_GOS @ importance).mul_(error_GOS).sum(-1).t()
