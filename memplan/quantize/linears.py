"""What counts as a linear layer, and its weights as out x in, however a family stores them.

Axes: O out features, I in features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a matrix: nn.Linear, or the Conv1D of GPT-2 that stores it in x out."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_router(module: nn.Module) -> bool:
    """Whether a module that is no linear layer multiplies its input by a matrix, as those that choose experts do."""
    weight = parameter(module, "weight")
    if weight is None or weight.dim() != 2 or is_linear(module) or isinstance(module, nn.Embedding):
        return False
    return not list(module.children())


def linears(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers of a block with their names in it."""
    return ((name, module) for name, module in block.named_modules() if is_linear(module))


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """A parameter of a module, None where it has no such."""
    value = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None


def weight_of(module: nn.Module) -> Tensor:
    """The weights of a linear layer or router, out x in: a view of what the module holds."""
    weight = parameter(module, "weight")
    assert weight is not None
    return weight.detach().t() if type(module).__name__ == "Conv1D" else weight.detach()


@torch.no_grad()
def set_weight(module: nn.Module, weight_OI: Tensor) -> None:
    """Put other weights into a linear layer."""
    weight_of(module).copy_(weight_OI)
