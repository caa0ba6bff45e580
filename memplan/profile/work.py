"""What operators compute and move: FLOPs of matrix products, convolutions and attention, bytes read and written.

Bytes are those of an ideal kernel: every operand read once and every result written once, of tables and caches only
the rows that are touched. Causal attention over a whole prompt counts half of its products, which is what a fused
kernel computes. What stays in a cache between two operators is not known, so a fused chain moves less than its parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from memplan.domain.timeline import Work
from memplan.profile.replay import PhaseWork

_OPS = torch.ops.aten
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
_DEPTH = 4
_BACKWARD = 2.5  # products of an attention's backward pass for one of its forward pass: five for two
Counts = dict[str, tuple[int, int]]


class WorkCounter:
    """Sums the work of each phase, by module; layers that differ only in their number are one."""

    def __init__(self) -> None:
        self._phases: list[Counts] = []
        self._names: dict[str, str] = {}

    def begin(self) -> None:
        """Start a phase."""
        self._phases.append({})

    def count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any, module: str) -> None:
        """Add one operator, that makes or changes tensors."""
        moved_bytes = _moved(func, args, made)
        formula = _FLOPS.get(func)
        flops = formula(args, kwargs, made) if formula is not None else 0
        if not (moved_bytes or flops):
            return
        name = self._names.get(module)
        if name is None:
            name = self._names[module] = ".".join(_NUMBER.sub("*", module).split(".")[:_DEPTH])
        before = self._phases[-1].get(name, (0, 0))
        self._phases[-1][name] = (before[0] + flops, before[1] + moved_bytes)

    def so_far(self) -> Counts:
        """What the phase has come to."""
        return dict(self._phases[-1])

    def take(self) -> Counts:
        """What the phase has come to, which it is then without."""
        taken = self.so_far()
        self._phases[-1].clear()
        return taken

    def add(self, more: Counts) -> None:
        """Add what was counted elsewhere."""
        counts = self._phases[-1]
        for name, (flops, moved) in more.items():
            before = counts.get(name, (0, 0))
            counts[name] = (before[0] + flops, before[1] + moved)

    def repeat(self, marks: tuple[Counts, Counts, Counts], steps: int) -> None:
        """Add further steps that each do as much more than the one before as the last two have: `marks` are before,
        between and after those.
        """
        counts = self._phases[-1]
        for name, (flops, moved) in marks[2].items():
            middle, first = marks[1].get(name, (0, 0)), marks[0].get(name, (0, 0))
            before = counts.get(name, (0, 0))
            more = [_extended(a, b, c, steps) for a, b, c in zip(first, middle, (flops, moved), strict=True)]
            counts[name] = (before[0] + more[0], before[1] + more[1])

    def by_phase(self) -> dict[int, PhaseWork]:
        """The work of each phase, by its number among the marks of the trace."""
        return {number: _phase_work(counts) for number, counts in enumerate(self._phases)}


def _extended(first: int, middle: int, last: int, steps: int) -> int:
    """The sum of `steps` more terms of a row whose last two are `middle - first` and `last - middle`."""
    before, term = middle - first, last - middle
    return steps * term + (term - before) * steps * (steps + 1) // 2


def _phase_work(counts: Counts) -> PhaseWork:
    total = Work(
        flops=sum(flops for flops, _ in counts.values()), moved_bytes=sum(moved for _, moved in counts.values())
    )
    return PhaseWork(
        total=total,
        by_module={name: Work(flops=flops, moved_bytes=moved) for name, (flops, moved) in counts.items()},
    )


def _moved(func: Any, args: tuple[Any, ...], made: Any) -> int:
    name = func._schema.name
    if name.startswith("aten::empty") or name == "aten::new_empty":
        return 0
    if name in _GATHERS:
        return 2 * _bytes(made) + sum(_bytes(each) for each in args[1:])
    if name in _WRITES:  # what is written, and what it is written from
        return 2 * _bytes(args[-1]) + sum(_bytes(each) for each in args[1:-1])
    if name in _FILLS:
        return _bytes(args[0]) + sum(_bytes(each) for each in args[1:])
    if name == "aten::_grouped_mm":
        return _grouped_bytes(args) + _bytes(made)
    return sum(_bytes(each) for each in args) + _bytes(made)


_GATHERS = {"aten::embedding", "aten::index", "aten::index_select", "aten::gather", "aten::embedding_dense_backward"}
_WRITES = {"aten::index_put_", "aten::index_copy_", "aten::scatter_", "aten::_index_put_impl_"}
_FILLS = {"aten::copy_", "aten::fill_", "aten::zero_"}


def _bytes(each: Any) -> int:
    if isinstance(each, torch.Tensor):
        return int(min(each.numel() * each.element_size(), each.untyped_storage().nbytes()))
    if isinstance(each, (list, tuple)):
        return sum(_bytes(one) for one in each)
    return 0


def _grouped_bytes(args: tuple[Any, ...]) -> int:
    """Rows, and the matrices of the groups that can have any: few tokens go to few experts."""
    left, right = args[:2]
    if right.dim() != 3 or left.dim() != 2:
        return _bytes(left) + _bytes(right)
    return _bytes(left) + int(_bytes(right) * min(left.shape[0], right.shape[0]) // right.shape[0])


Formula = Callable[[tuple[Any, ...], dict[str, Any], Any], int]


def _by_torch(packet: Any) -> Formula:
    """torch's own formula, which knows an operator by the shapes of what it is given and makes."""
    formula = flop_registry[packet]

    def count(args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> int:
        return int(formula(*args, **kwargs, out_val=made))

    return count


def _attention(operands: tuple[Any, ...], is_causal: bool, axes: tuple[int, int]) -> int:
    """Products of queries with keys and of scores with values; `axes` are those of heads and of tokens."""
    query, key, value = operands
    heads, tokens = axes
    queries, keys = int(query.shape[tokens]), int(key.shape[tokens])
    rows = int(query.shape[0]) * int(query.shape[heads]) * queries
    products = rows * keys * (int(query.shape[-1]) + int(value.shape[-1]))
    return products if is_causal and queries == keys else 2 * products


def _forward(position: int, axes: tuple[int, int] = (1, 2)) -> Formula:
    return lambda args, kwargs, made: _attention(args[:3], bool(_at(args, position)), axes)


def _backward(position: int, axes: tuple[int, int] = (1, 2)) -> Formula:
    return lambda args, kwargs, made: int(_BACKWARD * _attention(args[1:4], bool(_at(args, position)), axes))


def _at(args: tuple[Any, ...], position: int) -> Any:
    return args[position] if len(args) > position else False


def _grouped(args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> int:
    left, right = args[:2]
    rows = prod(left.shape[:-1])
    return int(2 * rows * left.shape[-1] * right.shape[-1])


_FLOPS: dict[Any, Formula] = {
    **{
        packet.default: _by_torch(packet)
        for packet in (_OPS.mm, _OPS.addmm, _OPS.bmm, _OPS.baddbmm, _OPS.convolution, _OPS.convolution_backward)
    },
    _OPS._grouped_mm.default: _grouped,
    _OPS._scaled_dot_product_flash_attention.default: _forward(4),
    _OPS._scaled_dot_product_flash_attention_for_cpu.default: _forward(4),
    _OPS._scaled_dot_product_efficient_attention.default: _forward(6),
    _OPS._flash_attention_forward.default: _forward(8, (2, 1)),
    _OPS._scaled_dot_product_flash_attention_backward.default: _backward(11),
    _OPS._scaled_dot_product_flash_attention_for_cpu_backward.default: _backward(7),
    _OPS._scaled_dot_product_efficient_attention_backward.default: _backward(11),
    _OPS._flash_attention_backward.default: _backward(11, (2, 1)),
}
