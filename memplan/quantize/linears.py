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


def linears(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers of a block with their names in it."""
    return ((name, module) for name, module in block.named_modules() if is_linear(module))


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """A parameter of a module, None where it has no such."""
    value = getattr(module, name, None)
    return value if isinstance(value, Tensor) else None


def weight_of(module: nn.Module) -> Tensor:
    """The weights of a linear layer, out x in: a view of what the module holds."""
    weight = parameter(module, "weight")
    assert weight is not None
    return weight.detach() if isinstance(module, nn.Linear) else weight.detach().t()


@torch.no_grad()
def set_weight(module: nn.Module, weight_OI: Tensor) -> None:
    """Put other weights into a linear layer."""
    weight_of(module).copy_(weight_OI)
