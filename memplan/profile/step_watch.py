"""What of a decoding step a CUDA graph cannot hold.

A graph replays kernels with the sizes and addresses that they were captured with. While it is captured nobody may wait
for the device: a value that the host reads, a shape that follows from values, a copy from memory that is not pinned end
the capture. A shape that is another in the next step makes a graph that is wrong from the second replay on.

Source: torch/csrc/cuda/Graph.cpp and aten/src/ATen/native/cuda/Copy.cpp of PyTorch 2.13.
Not modelled: what a model's code keeps in plain Python numbers, which a graph replays as they were.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.domain.timeline import CaptureBreak, Obstacle
from memplan.profile.alive import module_pattern
from memplan.profile.code_lines import CodeLines
from memplan.records import replace

_OPS = torch.ops.aten
_READS = frozenset((_OPS._local_scalar_dense.default, _OPS.equal.default))
_SHAPES = frozenset(
    (
        _OPS.nonzero.default,
        _OPS.masked_select.default,
        _OPS._unique2.default,
        _OPS.unique_consecutive.default,
        _OPS.unique_dim.default,
        _OPS.bincount.default,
    )
)
_REPEATS = _OPS.repeat_interleave.Tensor
_INDEX = frozenset((_OPS.index.Tensor, _OPS.index_put_.default, _OPS.index_put.default))
_COPIES = frozenset((_OPS._to_copy.default, _OPS.copy_.default))
_TRUTHS = (torch.bool, torch.uint8)
_MOST_GROWING = 5
Made = tuple[str, str, str, tuple[int, ...]]


class StepWatch(TorchDispatchMode):
    """Notes, while a step runs, what stands in a graph's way, and the shape of all that it makes on a device.

    `module` tells which module runs.
    """

    def __init__(self, device_type: str, module: Callable[[], str]) -> None:
        super().__init__()
        self.breaks: list[CaptureBreak] = []
        self.made: list[Made] = []
        self._device_type = device_type
        self._module = module
        self._lines = CodeLines()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        obstacle = self._obstacle(func, args, kwargs)
        name = str(func).removesuffix(".default")
        if obstacle is not None:
            where = self._lines.of(sys._getframe(1))
            self.breaks.append(CaptureBreak(obstacle=obstacle, operator=name, module=self._module(), where=where))
        made = func(*args, **kwargs)
        if isinstance(made, torch.Tensor) and self._is_there(made):
            self.made.append((self._module(), name, self._lines.of(sys._getframe(1)), tuple(made.shape)))
        return made

    def _is_there(self, each: Any) -> bool:
        return isinstance(each, torch.Tensor) and each.device.type == self._device_type

    def _obstacle(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Obstacle | None:
        if func in _READS:
            return "host-read" if self._is_there(args[0]) else None
        if func in _SHAPES or (func is _REPEATS and kwargs.get("output_size") is None):
            return "data-shape" if self._is_there(args[0]) else None
        if func in _INDEX:
            chosen = [each for each in args[1] if each is not None]
            return "data-shape" if any(each.dtype in _TRUTHS and self._is_there(each) for each in chosen) else None
        if func in _COPIES:
            return self._copy(func, args, kwargs)
        return None

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Obstacle | None:
        """What a copy between host and device is to a graph; one from pinned memory is a part of it."""
        if func is _OPS.copy_.default:
            into, source = args[0].device.type, args[1]
        else:
            into = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else args[0].device.type
            source = args[0]
        if source.device.type == into:
            return None
        if into == "cpu":
            return "host-read"
        return "host-copy" if source.device.type == "cpu" and not _is_pinned(source) else None


def _is_pinned(tensor: torch.Tensor) -> bool:
    return torch.cuda.is_available() and bool(tensor.is_pinned())


def growing(one: list[Made], two: list[Made]) -> Iterator[CaptureBreak]:
    """What two steps in a row make of different shapes, where they first do."""
    for (module, operator, where, shape), after in zip(one, two, strict=False):
        if after[:3] != (module, operator, where):  # the second step goes another way
            yield CaptureBreak(obstacle="growing-shape", operator=after[1], module=after[0], where=after[2])
            return
        if shape != after[3] and where:
            yield CaptureBreak(obstacle="growing-shape", operator=operator, module=module, where=where)


def merged(breaks: Iterable[CaptureBreak]) -> tuple[CaptureBreak, ...]:
    """Each obstacle once, with how often it is met; layers that differ only in their number are one.

    Of shapes that grow those are told that something is appended to: the others follow from them.
    """
    counts: dict[CaptureBreak, int] = {}
    for each in breaks:
        key = replace(each, module=module_pattern(each.module))
        counts[key] = counts.get(key, 0) + 1
    found = [replace(each, count=count) for each, count in counts.items()]
    growth = [each for each in found if each.obstacle == "growing-shape"]
    growth = [each for each in growth if each.operator == "aten.cat"] or growth
    return (*(each for each in found if each.obstacle != "growing-shape"), *growth[:_MOST_GROWING])


@contextlib.contextmanager
def as_if_capturing() -> Iterator[None]:
    """Let a model's code believe that its stream is captured, which some of it asks to choose its way."""
    plain = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = lambda: True
    try:
        yield
    finally:
        torch.cuda.is_current_stream_capturing = plain
