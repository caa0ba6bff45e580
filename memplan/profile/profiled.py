"""A recorder for code that a compiler made: it asks the CPU's allocator for memory without an operator to see.

PyTorch's own profiler is told of every block by the allocator, in C++; the trace is written from what it was told, when
the run is over. Of an allocation the operator is known, or that it was made by compiled code, and no module.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from memplan.domain.timeline import Capture, Category, Phase
from memplan.profile.events import EventLog, Label
from memplan.profile.recorder import local
from memplan.records import dataclass, replace

_COMPILED = "compiled code"
# What the profiler calls stretches in which compiled code runs.
_COMPILED_NAMES = ("Torch-Compiled Region", "## Call CompiledFxGraph", "CompiledFunction")


@dataclass(frozen=True, slots=True)
class _Block:
    """A block that was handed out, or taken back if its size is below zero, at a time in nanoseconds."""

    time_ns: int
    address: int
    size_bytes: int
    operator: str


class ProfiledRecorder:
    """Takes the place of `recorder.Recorder` on the CPU; `log` has its events once it is left."""

    work = None
    module = ""

    def __init__(self) -> None:
        self.log = EventLog()
        self.graph: Capture | None = None
        self._begins: list[tuple[int, Phase, int]] = []
        self._held: list[tuple[int, int, Category, Label]] = []
        self._named: list[tuple[int, int, Category]] = []
        self._alive: dict[int, int] = {}
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)

    def __enter__(self) -> ProfiledRecorder:
        with _unheard():
            self._profiler.__enter__()
        return self

    def __exit__(self, *caught: Any) -> None:
        with _unheard():
            self._profiler.__exit__(*caught)
        self._write()

    def begin(self, phase: Phase, iteration: int = 0) -> None:
        """Start a phase."""
        self._begins.append((time.time_ns(), phase, iteration))
        self.log.begin(phase, iteration)

    def name_modules(self, model: torch.nn.Module) -> None:
        """Nothing: compiled code calls no modules."""

    def hold(self, tensor: torch.Tensor, category: Category, *, module: str = "", operator: str = "") -> None:
        """Note a tensor that was made before the recorder was entered, such as a weight."""
        kind = str(tensor.dtype).removeprefix("torch.")
        label = Label(module=module, operator=operator, shape=tuple(tensor.shape), dtype=kind)
        storage = local(tensor).untyped_storage()
        self._held.append((storage.data_ptr(), storage.nbytes(), category, label))

    def classify(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Say what tensors that are alive are for."""
        now_ns = time.time_ns()
        for tensor in tensors:
            self._named.append((now_ns, local(tensor).untyped_storage().data_ptr(), category))

    def renumber(self, moved: dict[int, int]) -> None:
        """Nothing: every step is run."""

    def spike(self, sizes_bytes: Iterable[int], operator: str) -> None:
        """Nothing: what a real run takes, the allocator tells."""

    def _write(self) -> None:
        """Write the trace: what was held before, then every block in the order of time."""
        log, alive = self.log, self._alive
        log.marks.clear()
        begins, self._named = list(reversed(self._begins)), self._named[::-1]
        phase: Phase = "load"
        for address, size, category, label in self._held:
            alive[address] = log.allocate(size, label, category)
        for block in sorted(_blocks(self._profiler), key=lambda block: block.time_ns):
            self._name_until(block.time_ns)
            while begins and begins[-1][0] <= block.time_ns:
                _, phase, iteration = begins.pop()
                self._mark(phase, iteration)
            if block.size_bytes > 0:
                usual: Category = "workspace" if phase == "optimizer" else "activations"
                alive[block.address] = log.allocate(block.size_bytes, Label(operator=block.operator), usual)
            elif block.address in alive:
                log.free(alive.pop(block.address))
        for _, phase, iteration in reversed(begins):
            self._mark(phase, iteration)
        self._name_until(time.time_ns())

    def _mark(self, phase: Phase, iteration: int) -> None:
        """Begin a phase; what was held before the first one is a part of it."""
        self.log.begin(phase, iteration)
        self.log.marks[0] = replace(self.log.marks[0], position=0)

    def _name_until(self, time_ns: int) -> None:
        """Give what is alive the categories that it was said to have up to here. What is a weight stays one."""
        while self._named and self._named[-1][0] <= time_ns:
            _, address, category = self._named.pop()
            number = self._alive.get(address)
            if number is not None and self.log.category(number) != "weights":
                self.log.classify(number, category)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keep off the terminal what the profiler's C++ prints when it starts and stops."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _blocks(profiler: Any) -> Iterator[_Block]:
    waiting = [(event, "") for event in profiler.profiler.kineto_results.experimental_event_tree()]
    while waiting:
        event, operator = waiting.pop()
        if event.tag == _EventType.Allocation:
            found = event.extra_fields
            yield _Block(event.start_time_ns, found.ptr, found.alloc_size, operator)
            continue
        name = str(event.name)
        if name.startswith("aten::"):
            operator = f"aten.{name.removeprefix('aten::')}"
        elif name.startswith(_COMPILED_NAMES):
            operator = _COMPILED
        waiting.extend((child, operator) for child in event.children)
