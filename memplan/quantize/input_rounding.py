"""What an engine makes of the inputs of a layer that rounds them while it runs.

Axes: N tokens, I in features, G groups of in features, S in features of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memplan.quantize.elements import LARGEST, nearest, values
from memplan.quantize.methods import Method

_MAX_CODE = 127.0
_SMALLEST = 1e-12
_OUTLIER = 6.0  # a feature with an input as large as this stays as it is under LLM.int8()
_GROUP = 128  # in features that blocks of FP8 weights are multiplied with at a time


def round_inputs(input_NI: Tensor, method: Method, input_scale: float = 0.0) -> Tensor:
    """Return inputs (any leading axes) as an engine sees them under a method; `input_scale` where it is calibrated."""
    if method.activations == "inliers":
        outlier_I = (input_NI.abs() >= _OUTLIER).flatten(0, -2).any(0)
        return torch.where(outlier_I, input_NI, round_activations(input_NI.masked_fill(outlier_I, 0.0)))
    if method.element == "int":
        return round_activations(input_NI)
    if method.activations == "tensor":
        return round_floats(input_NI, torch.tensor(input_scale, device=input_NI.device))
    if method.activations == "group":
        input_NGS = input_NI.reshape(*input_NI.shape[:-1], -1, _GROUP)
        scale_NG1 = input_NGS.abs().amax(-1, keepdim=True).clamp_(min=_SMALLEST) / LARGEST["e4m3"]
        return round_floats(input_NGS, scale_NG1).reshape(input_NI.shape)
    return round_floats(input_NI, input_NI.abs().amax(-1, keepdim=True).clamp_(min=_SMALLEST) / LARGEST["e4m3"])


def round_activations(input_NI: Tensor) -> Tensor:
    """Return inputs as an engine sees them that rounds every token to 8 bits, symmetrically, while it runs."""
    scale_N1 = input_NI.abs().amax(-1, keepdim=True).clamp_(min=_SMALLEST) / _MAX_CODE
    return (input_NI / scale_N1).round_().clamp_(-_MAX_CODE - 1, _MAX_CODE).mul_(scale_N1)


def round_floats(input_NI: Tensor, scale: Tensor) -> Tensor:
    """Return inputs as e4m3 floats times a scale."""
    return values(nearest(input_NI / scale, "e4m3"), "e4m3") * scale
