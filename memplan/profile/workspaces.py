"""What operators take inside themselves and give back before they return: workspaces, sorted copies, partial sums.

The recorder sits above the kernels and cannot see it; each function here says, for one operator, the sizes in bytes
that are alive together while it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from memplan.profile.kernels import Target
from memplan.profile.recorder import Inside


def insides(target: Target, compute_capability: tuple[int, int]) -> dict[Any, Inside]:
    """By operator, what it takes inside on a device."""
    return {torch.ops.aten._safe_softmax.default: _safe_softmax}


def _safe_softmax(args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Iterable[int]:
    """Which scores are minus infinity, and in which rows all are: truths, of one byte each.

    Source: aten/src/ATen/native/transformers/attention.cpp of PyTorch 2.13.
    """
    rows = made.numel() // max(made.shape[args[1]], 1)
    return (made.numel(), rows, made.element_size())
