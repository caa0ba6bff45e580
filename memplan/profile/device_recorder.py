"""Where the phases of a run on a real device begin and end, and what its tensors are for.

The device's allocator keeps the history itself; what it cannot know is written into the snapshot of it: the phases; the
module that ran, by the time at which it began; and the category of an allocation, found by its address and the time at
which somebody said what it is. Levels and peaks are
the allocator's own counters, which are exact where a history may be cut.
"""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import torch

from memplan.domain.timeline import Capture, Category, Level, Phase, PhaseMemory
from memplan.profile.device_memory import DeviceMemory
from memplan.profile.module_names import Origins, named_call, sequence_number, told_backward
from memplan.profile.owners import Growth, owners
from memplan.profile.recorder import local
from memplan.profile.snapshot import Snapshot, snapshot_of
from memplan.records import dataclass, replace

_STATES: tuple[Category, ...] = ("weights", "gradients", "optimizer_state")
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_ANYWHERE = -1  # the address of what no tensor has


@dataclass(slots=True, kw_only=True)
class Stretch:
    """One phase as the device's counters had it."""

    phase: Phase
    iteration: int
    begin_us: int
    before: Level
    seconds: float = 0.0
    peak: Level | None = None
    peak_reserved_bytes: int = 0
    after: Level | None = None


@dataclass(frozen=True, slots=True)
class _NoEvents:
    """Stands where the other recorders have their trace: what counts its events finds none."""

    order: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Said:
    """What somebody said of the block at an address: what it is for, and the module that it belongs to."""

    time_us: int
    category: Category
    module: str | None


class DeviceRecorder:
    """Takes the place of `recorder.Recorder` where the device itself is asked."""

    work = None

    def __init__(self, memory: DeviceMemory) -> None:
        self.log = _NoEvents()
        self.graph: Capture | None = None
        self.names: dict[int, str] = {}
        self.stretches: list[Stretch] = []
        self._module = ""
        self._changes_us: list[int] = []
        self._modules: list[str] = []
        self._origins = Origins("")
        self._growth = Growth()
        self._holders: list[tuple[int, int, str]] = []
        self._undo = contextlib.ExitStack()
        self._memory = memory
        self._said: dict[int, list[_Said]] = {}
        self._start_s = 0.0
        self._data: dict[str, Any] | None = None

    @property
    def module(self) -> str:
        """The module that runs. In a backward pass, the one whose gradients are computed."""
        return self._module

    @module.setter
    def module(self, name: str) -> None:
        self._module = name
        self._changes_us.append(self._memory.now_us())
        self._modules.append(name)
        if torch.is_grad_enabled():
            self._origins.note(sequence_number() + 1, name)

    def __enter__(self) -> DeviceRecorder:
        self._wrap(torch.nn.Module, "__call__", named_call(self, torch.nn.Module.__call__))
        self._wrap(torch.autograd, "backward", told_backward(self, self._origins, torch.autograd.backward))
        return self

    def _wrap(self, owner: Any, name: str, wrapped: Any) -> None:
        self._undo.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, wrapped)

    def __exit__(self, *caught: object) -> None:
        """End, and take the history while what the run made is still alive."""
        self._undo.close()
        if self._growth.is_growing:
            self.name_owners()
        try:
            self.end()
        finally:
            if self._data is None:
                self._data = self._memory.snapshot()

    def begin(self, phase: Phase, iteration: int = 0) -> None:
        """Start a phase, when the device has done what it was given before. One that is on already goes on."""
        if self.stretches and self.stretches[-1].after is None:
            last = self.stretches[-1]
            if (last.phase, last.iteration) == (phase, iteration):
                return
        self.end()
        before = self._memory.level()
        if self._growth.begins(phase, before.allocated_bytes):
            self.name_owners()
        self._memory.restart_peak()
        begin_us = self._memory.now_us()
        self.stretches.append(Stretch(phase=phase, iteration=iteration, begin_us=begin_us, before=before))
        self._start_s = time.perf_counter()
        if phase == "forward":
            self._origins.clear()

    def end(self) -> None:
        """End the phase that is on, if one is."""
        if not self.stretches or self.stretches[-1].after is not None:
            return
        last = self.stretches[-1]
        last.after = self._memory.level()  # waits for the device
        last.seconds = time.perf_counter() - self._start_s
        last.peak, last.peak_reserved_bytes = self._memory.peak()

    def name_modules(self, model: torch.nn.Module) -> None:
        """Take the dotted names that modules of `model` will be called by."""
        for name, module in model.named_modules():
            self.names[id(module)] = name

    def empty_cache(self) -> None:
        """Give back to the device what is cached."""
        self._memory.give_back()

    def side_stream(self) -> contextlib.AbstractContextManager[None]:
        """What runs meanwhile goes to a stream of its own."""
        return self._memory.side_stream()

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Capture a step in a graph, and return what replays it."""
        return self._memory.capture(step)

    def hold(self, tensor: torch.Tensor, category: Category, *, module: str = "", operator: str = "") -> None:
        """Say what a tensor is for, and whose it is; the device has it already."""
        self._say([tensor], category, module)

    def classify(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Say what tensors that are alive are for. What was a weight once stays one."""
        self._say(tensors, category, None)

    def _say(self, tensors: Iterable[torch.Tensor], category: Category, module: str | None) -> None:
        now_us = self._memory.now_us()
        for tensor in tensors:
            address = self._memory.address_of(local(tensor))
            if address is not None:
                self._said.setdefault(address, []).append(_Said(now_us, category, module))

    def name_owners(self) -> None:
        """Look who holds what is alive and is not meant to stay; of what nobody holds, that a graph may."""
        states = {address for address, said in self._said.items() if said[-1].category in _STATES}
        now_us = self._memory.now_us()

        def address_of(tensor: torch.Tensor) -> int | None:
            if type(tensor) not in _PLAIN:
                return None
            address = self._memory.address_of(tensor)
            return None if address in states else address

        for address, name in owners(address_of, (_ANYWHERE,)).items():
            self._holders.append((address, now_us, name))

    def spike(self, sizes_bytes: Iterable[int], operator: str) -> None:
        """Nothing: what a real run takes is in its history."""

    def renumber(self, moved: dict[int, int]) -> None:
        """Nothing: every step is run."""

    def snapshot(self) -> Snapshot:
        """The history, with its phases and categories, as a trace. Raises: CorruptFile when it has nothing."""
        data = self._data if self._data is not None else self._memory.snapshot()
        data["external_annotations"] = [
            {"stage": "START", "name": f"{each.phase} {each.iteration}", "device": 0, "time_us": each.begin_us}
            for each in self.stretches
        ]
        self._name_entries(data)
        return snapshot_of(data)

    def _name_entries(self, data: dict[str, Any]) -> None:
        """Write categories into the requests that they belong to: the last one for an address before it was named.

        What nobody named is a workspace in an optimizer's step, and an activation elsewhere.
        """
        begins = [each.begin_us for each in self.stretches]
        outside = [*self._modules, ""]  # before the first of them, too
        for trace in data.get("device_traces", []):
            made: dict[int, list[dict[str, Any]]] = {}
            for entry in trace:
                if entry.get("action") == "alloc":
                    number = bisect_right(begins, entry.get("time_us", 0)) - 1
                    in_step = number >= 0 and self.stretches[number].phase == "optimizer"
                    entry["category"] = "workspace" if in_step else "activations"
                    entry["module"] = outside[bisect_right(self._changes_us, entry.get("time_us", 0)) - 1]
                    made.setdefault(entry["addr"], []).append(entry)
            for address, said in self._said.items():
                _name(made.get(address, []), said)
            for address, time_us, name in self._holders:
                if address == _ANYWHERE:
                    _hold_unheld(trace, time_us, name)
                    continue
                times = [entry.get("time_us", 0) for entry in made.get(address, [])]
                if index := bisect_right(times, time_us):
                    made[address][index - 1]["held_by"] = name


def _hold_unheld(trace: list[dict[str, Any]], time_us: int, name: str) -> None:
    """Activations that no tensor of the program's holds are a graph's, if they stay."""
    for entry in trace:
        if entry.get("action") == "alloc" and entry["category"] == "activations" and entry["time_us"] <= time_us:
            entry.setdefault("held_by", name)


def _name(entries: list[dict[str, Any]], said: list[_Said]) -> None:
    """Write what was said of the blocks at one address into the requests for them."""
    times = [entry.get("time_us", 0) for entry in entries]
    for each in said:
        index = bisect_right(times, each.time_us) - 1
        if index < 0 or entries[index].get("category") == "weights":
            continue
        entries[index]["category"] = each.category
        if each.module is not None:
            entries[index]["module"] = each.module


def counted(phases: tuple[PhaseMemory, ...], stretches: Iterable[Stretch]) -> tuple[PhaseMemory, ...]:
    """Put the counters of each stretch in the place of the levels that the history gave.

    What the history does not explain of a peak is unknown; all of it where it has nothing of a phase, because nothing
    was asked for in it.
    """
    known = {(phase.phase, phase.iteration): phase for phase in phases}
    found = []
    for stretch in stretches:
        if stretch.peak is None or stretch.after is None:
            continue
        phase = known.get((stretch.phase, stretch.iteration))
        levels: dict[str, Any] = {
            "before": stretch.before,
            "peak": stretch.peak,
            "after": stretch.after,
            "peak_reserved_bytes": stretch.peak_reserved_bytes,
        }
        if phase is None:
            rest: dict[Category, int] = {"unknown": stretch.peak.allocated_bytes}
            kind: dict[str, Any] = {"phase": stretch.phase, "iteration": stretch.iteration}
            found.append(PhaseMemory(by_category=rest, by_module={"": rest["unknown"]}, **kind, **levels))
            continue
        missing = stretch.peak.allocated_bytes - phase.peak.allocated_bytes
        if missing < 0:  # the history's blocks are rounded where they are gone, and can come to a little more
            found.append(replace(phase, **{**levels, "peak": phase.peak}))
            continue
        shares, modules = dict(phase.by_category), dict(phase.by_module)
        if missing:
            shares["unknown"] = shares.get("unknown", 0) + missing
            modules[""] = modules.get("", 0) + missing
        found.append(replace(phase, by_category=shares, by_module=modules, **levels))
    return tuple(found)
