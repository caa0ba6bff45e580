"""What a model passes to each of its decoder blocks, found by running everything around them.

The blocks are replaced by ones that hand their input on, and note what else they were given: masks by kind of layer,
rotary tables, whatever a family invents. Inputs to the first block come out of the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memplan.quantize.skeleton import Skeleton
from memplan.records import dataclass


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of a block beside its input, for one batch. A block's input is its first argument."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, block: nn.Module, input_BNH: Tensor) -> Tensor:
        """Run a block and return its output alone."""
        output = block(input_BNH, *self.args, **self.kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def equals(self, other: Call) -> bool:
        """Whether another call passes the same."""
        return _same(self.args, other.args) and _same(dict(self.kwargs), dict(other.kwargs))

    def as_float(self) -> Call:
        """The same call in float32."""
        kwargs = {name: _map(value, _float) for name, value in self.kwargs.items()}
        return Call(tuple(_map(value, _float) for value in self.args), kwargs)


class _Noting(nn.Module):
    """Stands in for a block: notes its call and hands its input on, as a tuple where the family wants one.

    Whatever else the model's loop asks a block for, such as the kind of its attention, the block itself answers.
    """

    def __init__(self, block: nn.Module, returns_tuple: bool) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "call", None)
        self.returns_tuple = returns_tuple

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Note the call, hand the input on."""
        if args:
            hidden, args = args[0], args[1:]
        else:
            hidden = kwargs.pop("hidden_states")
        object.__setattr__(self, "call", Call(args, dict(kwargs)))
        object.__setattr__(self, "hidden", hidden)
        return (hidden,) if self.returns_tuple else hidden


class Surroundings:
    """A model whose blocks only note their calls. Everything outside of them must be loaded."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self.returns_tuple = False

    @torch.no_grad()
    def calls(self, token_BN: Tensor) -> tuple[Tensor, list[Call]]:
        """Return the input of the first block (B x N x H) for a batch of tokens, and the call of every block."""
        model, names = self.skeleton.model, self.skeleton.blocks
        blocks = [model.get_submodule(name) for name in names]
        noting = [_Noting(block, self.returns_tuple) for block in blocks]
        try:
            for name, stand_in in zip(names, noting, strict=True):
                model.set_submodule(name, stand_in)
            model.base_model(input_ids=token_BN.to(self.skeleton.device), use_cache=False)
        finally:
            for name, block in zip(names, blocks, strict=True):
                model.set_submodule(name, block)
        return noting[0].hidden, [stand_in.call for stand_in in noting]


def _same(value: Any, other: Any) -> bool:
    """Whether two nested values are the same; what is neither a tensor nor plain is the same when it is one thing."""
    if isinstance(value, Tensor):
        return isinstance(other, Tensor) and value.shape == other.shape and torch.equal(value, other)
    if isinstance(value, tuple | list):
        return type(value) is type(other) and len(value) == len(other) and all(map(_same, value, other))
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_same(value[key], other[key]) for key in value)
    return value is other or (isinstance(value, bool | int | float | str) and value == other)


def _float(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value


def _map(value: Any, change: Any) -> Any:
    """Apply a function to every tensor in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(_map(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    return value
