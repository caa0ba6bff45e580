"""Which module runs: in a forward pass whose call it is, in a backward pass whose operator's gradient is computed.

Modules call each other through one function, which is wrapped; autograd numbers the operators of a forward pass, and
gives the number back in the backward pass.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import torch

Origin = TypeVar("Origin")
# What puts a gradient where it belongs has no number, and goes on where the operator before it was.
_ADDS_UP = "torch::autograd::AccumulateGrad"
sequence_number = torch.autograd._get_sequence_nr


class Named(Protocol):
    """Is told which module runs, by the names that it knows them by."""

    module: str

    @property
    def names(self) -> dict[int, str]: ...


def named_call(named: Named, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A module's call that tells which module runs."""
    names = named.names

    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        name = names.get(id(self))
        if name is None:
            return plain(self, *args, **kwargs)
        outer = named.module
        named.module = name
        try:
            return plain(self, *args, **kwargs)
        finally:
            named.module = outer

    return call


class Origins(Generic[Origin]):
    """Where the operators of a forward pass stand, by what autograd has counted when they are through."""

    def __init__(self, nowhere: Origin) -> None:
        self._nowhere = nowhere
        self._numbers: list[int] = []
        self._origins: list[Origin] = []

    def clear(self) -> None:
        """Forget an earlier forward pass."""
        self._numbers.clear()
        self._origins.clear()

    def has(self, number: int) -> bool:
        """Whether an operator up to this number was noted."""
        return bool(self._numbers) and self._numbers[-1] >= number

    def note(self, number: int, origin: Origin) -> None:
        """Operators from this number on stand here, until the next note."""
        if self._numbers and self._numbers[-1] == number:
            self._origins[-1] = origin
        elif not self._origins or self._origins[-1] != origin:
            self._numbers.append(number)
            self._origins.append(origin)

    def of(self, node: Any) -> Origin:
        """Where the operator stands that a node of the backward pass belongs to."""
        if node is None or not self._origins:
            return self._nowhere
        index = bisect_right(self._numbers, node._sequence_nr() + 1) - 1
        return self._origins[max(index, 0)]


def told_backward(named: Named, origins: Origins[str], plain: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.autograd.backward` that tells, before each of its operators, which module that belongs to."""

    def tell(node: Any) -> Callable[[Any], None]:
        name = origins.of(node)

        def before(gradients: Any) -> None:
            named.module = name

        return before

    def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        outer = named.module
        roots = tensors if isinstance(tensors, (list, tuple)) else [tensors]
        nodes = [node for node in _nodes(each.grad_fn for each in roots) if node.name() != _ADDS_UP]
        handles = [node.register_prehook(tell(node)) for node in nodes]
        try:
            return plain(tensors, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
            named.module = outer

    return backward


def _nodes(roots: Iterable[Any]) -> list[Any]:
    """Every operator of a backward pass."""
    waiting = [node for node in roots if node is not None]
    seen = set(waiting)
    found = []
    while waiting:
        node = waiting.pop()
        found.append(node)
        for other, _ in node.next_functions:
            if other is not None and other not in seen:
                seen.add(other)
                waiting.append(other)
    return found
