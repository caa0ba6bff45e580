"""Where the phases of a run on a real device begin and end, and what its tensors are for.

The device's allocator keeps the history itself; what it cannot know is written into the snapshot of it: the phases, and
the category of an allocation, found by its address and the time at which somebody said what it is. Levels and peaks are
the allocator's own counters, which are exact where a history may be cut.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import torch

from memplan.domain.timeline import Category, Level, Phase, PhaseMemory
from memplan.profile.device_memory import DeviceMemory
from memplan.profile.recorder import local
from memplan.profile.snapshot import Snapshot, snapshot_of
from memplan.records import dataclass, field, replace


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


@dataclass(slots=True)
class _Named:
    times_us: list[int] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)


class DeviceRecorder:
    """Takes the place of `recorder.Recorder` where the device itself is asked."""

    work = None

    def __init__(self, memory: DeviceMemory) -> None:
        self.log = _NoEvents()
        self.stretches: list[Stretch] = []
        self._memory = memory
        self._named: dict[int, _Named] = {}
        self._start_s = 0.0
        self._data: dict[str, Any] | None = None

    def __enter__(self) -> DeviceRecorder:
        return self

    def __exit__(self, *caught: object) -> None:
        """End, and take the history while what the run made is still alive."""
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
        self._memory.restart_peak()
        begin_us = self._memory.now_us()
        self.stretches.append(Stretch(phase=phase, iteration=iteration, begin_us=begin_us, before=before))
        self._start_s = time.perf_counter()

    def end(self) -> None:
        """End the phase that is on, if one is."""
        if not self.stretches or self.stretches[-1].after is not None:
            return
        last = self.stretches[-1]
        last.after = self._memory.level()  # waits for the device
        last.seconds = time.perf_counter() - self._start_s
        last.peak, last.peak_reserved_bytes = self._memory.peak()

    def name_modules(self, model: torch.nn.Module) -> None:
        """Nothing: a history has lines of code, and no modules."""

    def hold(self, tensor: torch.Tensor, category: Category, **named: str) -> None:
        """Say what a tensor is for; the device has it already."""
        self.classify([tensor], category)

    def classify(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Say what tensors that are alive are for. What was a weight once stays one."""
        now_us = self._memory.now_us()
        for tensor in tensors:
            address = self._memory.address_of(local(tensor))
            if address is not None:
                named = self._named.setdefault(address, _Named())
                named.times_us.append(now_us)
                named.categories.append(category)

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
        for trace in data.get("device_traces", []):
            made: dict[int, list[dict[str, Any]]] = {}
            for entry in trace:
                if entry.get("action") == "alloc":
                    number = bisect_right(begins, entry.get("time_us", 0)) - 1
                    in_step = number >= 0 and self.stretches[number].phase == "optimizer"
                    entry["category"] = "workspace" if in_step else "activations"
                    made.setdefault(entry["addr"], []).append(entry)
            for address, named in self._named.items():
                entries = made.get(address, [])
                times = [entry.get("time_us", 0) for entry in entries]
                for time_us, category in zip(named.times_us, named.categories, strict=True):
                    index = bisect_right(times, time_us) - 1
                    if index >= 0 and entries[index].get("category") != "weights":
                        entries[index]["category"] = category


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
