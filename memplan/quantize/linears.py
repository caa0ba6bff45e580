"""What counts as a linear layer, and its weights as out x in, however a family stores them.

Axes: O out features, I in features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

_FEW_FEATURES = 32


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a matrix: nn.Linear, or the Conv1D of GPT-2 that stores it in x out."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_router(module: nn.Module) -> bool:
    """Whether a module that is no linear layer multiplies its input by a matrix, as those that choose experts do."""
    weight = parameter(module, "weight")
    return weight is not None and weight.dim() == 2 and not is_linear(module) and not isinstance(module, nn.Embedding)


def linears(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers of a block with their names in it."""
    return ((name, module) for name, module in block.named_modules() if is_linear(module))


def stays(model: nn.Module, name: str) -> bool:
    """Whether a linear layer is left alone in every family.

    Layers of few in or out features hold nothing, and kernels take multiples of 32. Engines build the projections
    around a state space of Mamba's first version without quantization; `dt_proj` and `x_proj` tell that version.
    """
    if min(weight_of(model.get_submodule(name)).shape) < _FEW_FEATURES:
        return True
    around = model.get_submodule(name.rpartition(".")[0])
    return all(isinstance(getattr(around, leaf, None), nn.Linear) for leaf in ("dt_proj", "x_proj"))


def held_elsewhere(block: nn.Module) -> tuple[list[str], float]:
    """The matrices of a block that are in no linear layer or router, by name, and their part of all its weights."""
    found: list[str] = []
    total = num_found = 0
    for name, module in block.named_modules():
        for leaf, value in module.named_parameters(recurse=False):
            total += value.numel()
            if value.dim() > 1 and not is_linear(module) and not is_router(module):
                found.append(f"{name}.{leaf}")
                num_found += value.numel()
    return found, num_found / max(1, total)


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
