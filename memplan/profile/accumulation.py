"""How autograd adds up gradients that meet in one place: into the first of them, if nobody else holds it.

While a dispatch mode is entered, autograd plays safe and makes a new tensor every time, which a run without a recorder
would not. The recorder therefore decides as autograd would: by how often the tensor and its storage are held.

Source: torch/csrc/autograd/input_buffer.cpp of PyTorch 2.4 to 2.13.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ADD = torch.ops.aten.add.Tensor


def adds_in_place(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bool:
    """Whether a sum made in a backward pass is one that autograd would write into its first argument."""
    if kwargs or torch.is_grad_enabled():
        return False
    into, other = args
    return (
        isinstance(other, torch.Tensor)
        and into.shape == other.shape
        and into.dtype == other.dtype
        and _holders(into) == lone_holders()
        and torch.ops.aten.is_non_overlapping_and_dense(into)
    )


def _holders(tensor: torch.Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return tensor._use_count(), torch._C._storage_Use_Count(storage._cdata)


@lru_cache(maxsize=1)
def lone_holders() -> tuple[int, int]:
    """How often a gradient is held, seen from a dispatch mode, when autograd alone holds it: learnt from one that is.

    To be called once before a backward pass runs, because it runs one.
    """
    if not hasattr(torch.Tensor, "_use_count"):
        return (-1, -1)
    seen: list[tuple[int, int]] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is _ADD:
                seen.append(_holders(args[0]))
            return func(*args, **(kwargs or {}))

    with torch.enable_grad():
        leaf = torch.ones(4, requires_grad=True)
        middle = leaf * 2
        total = torch.cat((middle * 3, middle * 4)).sum()
        with Look():
            total.backward()
    return seen[0] if seen else (-1, -1)
