"""What a model passes to each of its decoder blocks, found by running everything around them.

The blocks are replaced by ones that hand their input on, and note what else they were given: masks by kind of layer,
rotary tables, whatever a family invents. Inputs to the first block come out of the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memplan.errors import UnsupportedModel
from memplan.quantize.skeleton import Skeleton
from memplan.quantize.unsupported import UnsupportedHere
from memplan.records import dataclass

_MOST_RETURNED = 3


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

    def __init__(self, block: nn.Module, num_returned: int) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        object.__setattr__(self, "call", None)
        object.__setattr__(self, "hidden", None)
        self.num_returned = num_returned

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
        return returned(hidden, self.num_returned)


def returned(hidden: Tensor, num_returned: int) -> Any:
    """What a block returns whose output is `hidden`: that alone (0), or first of so many."""
    return (hidden, *[None] * (num_returned - 1)) if num_returned else hidden


class Surroundings:
    """A model whose blocks only note their calls. Everything outside of them must be loaded.

    Blocks return a tensor, or several things in a tuple, `num_returned` of them: whichever the model's loop takes.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self.num_returned: int | None = None

    def calls(self, token_BN: Tensor) -> tuple[Tensor, list[Call]]:
        """Return the input of the first block (B x N x H) for a batch of tokens, and the call of every block.

        Raises: UnsupportedModel when blocks are not called as they are in every family that is known.
        """
        if self.num_returned is not None:
            return self._run(token_BN, self.num_returned)
        failed: Exception | None = None
        for num_returned in range(_MOST_RETURNED + 1):
            try:
                found = self._run(token_BN, num_returned)
            except (IndexError, ValueError, RuntimeError, TypeError, AttributeError) as error:
                failed = failed or error
                continue
            self.num_returned = num_returned
            return found
        kind = type(self.skeleton.model).__name__
        raise UnsupportedHere(f"{kind} does not run with blocks that hand their input on: {failed}")

    def _run(self, token_BN: Tensor, num_returned: int) -> tuple[Tensor, list[Call]]:
        """Run the model around its blocks. Raises: ValueError when it does not hand on whole hidden states."""
        model, names = self.skeleton.model, self.skeleton.blocks
        blocks = [model.get_submodule(name) for name in names]
        noting = [_Noting(block, num_returned) for block in blocks]
        try:
            for name, stand_in in zip(names, noting, strict=True):
                model.set_submodule(name, stand_in)
            with torch.no_grad():
                output = model.base_model(input_ids=token_BN.to(self.skeleton.device), use_cache=False)
        finally:
            for name, block in zip(names, blocks, strict=True):
                model.set_submodule(name, block)
        seen = [stand_in.hidden for stand_in in noting]
        if any(hidden is None or hidden.shape != seen[0].shape for hidden in seen) or output[0].dim() < 3:
            raise ValueError("hidden states change their shape from block to block")
        calls = [stand_in.call for stand_in in noting]
        _check_apart(model, calls)
        return seen[0], calls


def _check_apart(model: Any, calls: list[Call]) -> None:
    """Raises: UnsupportedModel when blocks leave keys and values for later ones, which no file keeps between them."""
    shares = int(getattr(model.config.get_text_config(), "num_kv_shared_layers", 0) or 0)
    given = [value for call in calls for value in (*call.args, *call.kwargs.values())]
    left = any(isinstance(value, Mapping) and not value for value in given)
    if shares and left:
        raise UnsupportedModel(
            f"{shares} blocks of {type(model).__name__} read keys and values that earlier blocks left for them",
            hint="such models are not worked on block by block yet; evaluated they can be, where they fit whole",
        )


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
