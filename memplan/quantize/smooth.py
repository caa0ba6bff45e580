"""SmoothQuant: what makes activations hard to round is moved into the weights, as far as both gain.

Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, arXiv 2211.10438.
Weights are rounded by row and activations by token, both to 8 bits. The paper fixes how much is moved (0.5); here it is
searched on the calibration tokens themselves, because the largest input of a feature says nothing of the others. Where
activations stay as they are the same search finds what lets rows of weights be rounded with the least error: features
with large inputs and small weights share their row's scale with weights that matter less.

Axes: N tokens that are looked at, O out features, I in features, R rows that are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from memplan.quantize.awq import Scaling
from memplan.quantize.grid import Grid, round_to_nearest
from memplan.quantize.input_rounding import round_activations
from memplan.quantize.rows import evenly_spaced

_STEPS = 10
_ROWS = 256
_SMALLEST = 1e-5


def search_smoothing(weights_OI: Sequence[Tensor], largest_I: Tensor, sample_NI: Tensor, grid: Grid) -> Scaling:
    """Return the scaling under which rounding weights, and inputs by token where `grid` says so, costs outputs least.

    `largest_I` is the largest |x| of each in feature over the calibration tokens, `sample_NI` some of the tokens.
    """
    rows_RI = torch.cat([weight_OI[evenly_spaced(len(weight_OI), _ROWS)].float() for weight_OI in weights_OI])
    weight_I = torch.stack([_largest(weight_OI) for weight_OI in weights_OI]).amax(0)
    wanted_NR = sample_NI @ rows_RI.t()
    plain = best = _loss(rows_RI, sample_NI, wanted_NR, None, grid)
    best_I = torch.ones_like(largest_I)
    for scale_I in _candidates(largest_I, weight_I):
        loss = _loss(rows_RI, sample_NI, wanted_NR, scale_I, grid)
        if loss < best:
            best, best_I = loss, scale_I
    return Scaling(scale_I=best_I, loss=best, plain_loss=plain)


def _largest(weight_OI: Tensor) -> Tensor:
    """The largest size of a weight of every in feature (I, float32)."""
    return torch.maximum(weight_OI.amax(0), weight_OI.amin(0).neg()).to(torch.float32)


def _candidates(largest_I: Tensor, weight_I: Tensor) -> Iterator[Tensor]:
    largest_I, weight_I = largest_I.clamp(min=_SMALLEST), weight_I.clamp(min=_SMALLEST)
    for step in range(1, _STEPS):
        part = step / _STEPS
        scale_I = largest_I**part / weight_I ** (1 - part)
        yield scale_I / (scale_I.max() * scale_I.min()).sqrt()


def _loss(rows_RI: Tensor, sample_NI: Tensor, wanted_NR: Tensor, scale_I: Tensor | None, grid: Grid) -> float:
    if scale_I is not None:
        rows_RI, sample_NI = rows_RI * scale_I, sample_NI / scale_I
    if grid.activation_bits < 16:
        sample_NI = round_activations(sample_NI)
    got_NR = sample_NI @ round_to_nearest(rows_RI, grid).dequantize().t()
    return float(got_NR.sub_(wanted_NR).square_().sum() / sample_NI.shape[0])
