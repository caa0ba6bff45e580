"""The history in a snapshot, made into a trace: what was asked for and freed, in what order, and by whose code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.domain.timeline import PHASES, Category, OutOfMemory, Phase
from memplan.errors import CorruptFile
from memplan.profile.alive import Patterns
from memplan.profile.events import EventLog
from memplan.profile.snapshot_blocks import Neighbours
from memplan.profile.snapshot_device import Device, Entry
from memplan.profile.snapshot_frames import NOWHERE, Origin, Origins, empties_cache, named_category
from memplan.records import dataclass

_REQUESTS = ("alloc", "free_requested", "free_completed")
_SEGMENTS = ("segment_alloc", "segment_free", "segment_map", "segment_unmap")
_LARGEST = 1 << 48
_ITERATION = re.compile(r"-?\d{1,9}")


@dataclass(slots=True)
class Made:
    """An allocation as the snapshot knows it."""

    address: int
    size_bytes: int
    origin: Origin
    category: Category | None = None
    stream: int = 0


class History:
    """Takes in a device's segments as they were at the end, then its trace; `log` is what comes of it.

    `held` is the size of each allocation's block: the true one where it was alive at the end, else the request
    rounded. `before` and `device` are what was there before the first step, `first` allocations of it; `now` is the
    device as the history goes on. `entries` are the trace's steps, and `entry_of` the one behind each event.
    """

    def __init__(self, settings: AllocatorSettings) -> None:
        self.log = EventLog()
        self.held: list[int] = []
        self.entries: list[Entry] = []
        self.entry_of: list[int] = []
        self.first = 0
        self.before: list[Made] = []
        self.out_of_memory: OutOfMemory | None = None
        self.device = Device()
        self.now = Device()
        self.end: dict[int, tuple[int, Made]] = {}
        self.settings = settings
        self._rules = make_allocator(settings)
        self._neighbours = Neighbours(settings, {})
        self._streams = {0: 0}
        self._segment_streams: dict[int, int] = {}
        self._origins = Origins()
        self._alive: dict[int, int] = {}
        self._freed: dict[int, tuple[int, int]] = {}
        self._in_backward: list[int] = []
        self._returned = False
        self._is_named = False
        self._begins: list[tuple[int, Phase, int | None]] = []

    def add_segment(self, segment: Mapping[str, Any]) -> None:
        """A segment and its blocks at the end. Raises: CorruptFile."""
        address = _number(segment, "address")
        self._segment_streams[address] = _stream(segment)
        self.device.add(address, _number(segment, "total_size"), is_expandable=segment.get("is_expandable") is True)
        blocks = segment.get("blocks", [])
        for block in blocks if isinstance(blocks, list) else ():
            if not isinstance(block, Mapping):
                raise CorruptFile("not a memory snapshot: a block is no dictionary")
            size = _number(block, "size")
            state = block.get("state")
            if state == "active_allocated":
                requested = block.get("requested_size", size)
                requested = requested if isinstance(requested, int) and 0 < requested <= size else size
                origin = self._origins.of(block.get("frames"))
                self.end[address] = (size, Made(address, requested, origin, stream=_stream(segment)))
            address += size

    def read_trace(self, trace: list[Any]) -> None:
        """Every step from the first to the last. Raises: CorruptFile."""
        steps = [(self._entry(raw), raw) for raw in trace]
        # From the highest address down, so that each one's upper neighbour is known.
        self.before = sorted(self._before(steps), key=lambda made: -made.address)
        for entry, _ in reversed(steps):
            self.device.undo(entry)
        self._neighbours = Neighbours(self.settings, self.device.segments)
        self.now = self.device.copy()
        for made in self.before:
            self._make(made)
        self.first = len(self.before)
        begins = sorted(self._begins, key=lambda begin: begin[0], reverse=True)
        if not begins or not steps or _time(steps[0][1]) < begins[-1][0]:
            self.log.begin("run")
        for entry, raw in steps:
            while begins and _time(raw) >= begins[-1][0]:
                self._begin(*begins.pop()[1:])
            self.entries.append(entry)
            self._step(entry, raw)
        for address, (size, _) in self.end.items():
            if address in self._alive:
                self.held[self._alive[address]] = size
        self._find_weights()

    def _find_weights(self) -> None:
        """What was there before, is there at the end, and is as large as a gradient, is the weight that it is for."""
        gradients = {size for number, size in enumerate(self.log.sizes) if self.log.category(number) == "gradients"}
        for number in self._alive.values():
            if number < self.first and self.log.category(number) == "unknown" and self.log.sizes[number] in gradients:
                self.log.classify(number, "weights")

    def stream_of_segment(self, address: int) -> int:
        """The stream, as the trace counts them, that a segment's blocks are for."""
        return self._number_of_stream(self._segment_streams.get(address, 0))

    def _number_of_stream(self, stream: int) -> int:
        """A stream as the trace counts it: from 0, the default one; of more than 256 the rest share a number."""
        return self._streams.setdefault(stream, min(len(self._streams), 255))

    def add_annotation(self, annotation: object) -> None:
        """A name that the program gave to a stretch of its run, if it is one of a phase."""
        if isinstance(annotation, Mapping) and annotation.get("stage") == "START":
            name = str(annotation.get("name", "")).lower()
            word, _, number = name.partition(" ")
            phase = "optimizer" if name.startswith("optimizer.step") else word
            iteration = int(number) if _ITERATION.fullmatch(number) else None
            if phase in PHASES or (phase == "run" and iteration is not None):
                self._begins.append((_time(annotation), cast("Phase", phase), iteration))

    def _begin(self, phase: Phase, iteration: int | None) -> None:
        """Start a phase, again where it ran before. One in which nothing happened is left out."""
        if self.log.marks and self.log.marks[-1].position == len(self.log.order):
            self.log.marks.pop()
        again = sum(mark.phase == phase for mark in self.log.marks)
        self.log.begin(phase, again if iteration is None else iteration)

    def _entry(self, raw: object) -> Entry:
        if not isinstance(raw, Mapping) or not isinstance(raw.get("action"), str):
            raise CorruptFile("not a memory snapshot: a step of its history has no action")
        action = raw["action"]
        if action in _REQUESTS or action in _SEGMENTS:
            return Entry(action, _number(raw, "addr"), _number(raw, "size"), _stream(raw))
        return Entry(action, 0, 0)

    def _before(self, steps: list[tuple[Entry, Any]]) -> list[Made]:
        """What was alive before the first step: freed without having been made, or at the end without having been."""
        made: set[int] = set()
        before: dict[int, Made] = {}
        for entry, raw in steps:
            if entry.action == "alloc":
                made.add(entry.address)
            elif entry.action == "free_requested":
                if entry.address not in made and entry.address not in before:
                    # Its frames are those of the free.
                    category = named_category(raw.get("category"))
                    before[entry.address] = Made(entry.address, entry.size_bytes, NOWHERE, category, entry.stream)
                made.add(entry.address)
        for address, (_, block) in self.end.items():
            if address not in made:
                before[address] = block
        return list(before.values())

    def _make(self, made: Made) -> None:
        origin = made.origin
        category = made.category or origin.category
        stream = self._number_of_stream(made.stream)
        number = self.log.allocate(made.size_bytes, origin.label, category, stream)
        self.held.append(self._neighbours.take(made.address, self._rules.rounded(made.size_bytes)))
        if self._neighbours.corrected is not None:
            below, size = self._neighbours.corrected
            if self._alive.get(below, self.first) < self.first:
                self.held[self._alive[below]] = size
        self._alive[made.address] = number
        if made.category is not None:
            self._is_named = True
        elif origin.category is None:
            self._note_training(number, origin)

    def _note_training(self, number: int, origin: Origin) -> None:
        """What a backward pass makes and an optimizer finds alive is a gradient; what an optimizer makes is its own."""
        if origin.in_backward:
            self._in_backward.append(number)
        elif origin.in_optimizer:
            alive = set(self._alive.values()) if self._in_backward else set()
            for made in self._in_backward:
                if made in alive:
                    self.log.classify(made, "gradients")
            self._in_backward.clear()
            self.log.classify(number, "optimizer_state")

    def _step(self, entry: Entry, raw: Mapping[str, Any]) -> None:
        index = len(self.entries) - 1
        self._note_returned(entry, raw)
        if entry.action == "alloc":
            if entry.address in self._alive:  # its free is missing from the history
                self._free(entry.address, index)
            origin = self._origins.of_entry(raw)
            category = named_category(raw.get("category"))
            self._make(Made(entry.address, entry.size_bytes, origin, category, entry.stream))
            if isinstance(raw.get("held_by"), str):
                self.log.holders[len(self.log.sizes) - 1] = raw["held_by"]
            self.entry_of.append(index)
        elif entry.action == "free_requested" and entry.address in self._alive:
            number = self._alive[entry.address]
            self._free(entry.address, index)
            self._freed[entry.address] = (number, len(self.log.order))
        elif entry.action == "free_completed":
            self._complete(entry.address)
        elif entry.action == "oom":
            self._run_out(raw)
        else:
            self._neighbours.apply(entry)
            self.now.apply(entry)

    def _note_returned(self, entry: Entry, raw: Mapping[str, Any]) -> None:
        """Find where the program emptied the cache: where segments went back for no request that found no room."""
        if entry.action in ("segment_free", "segment_unmap"):
            self._returned = True
            self._segment_streams[entry.address] = entry.stream
            if empties_cache(raw):
                self._empty_cache()
        elif self._returned and entry.action != "free_completed":
            if entry.action not in ("segment_alloc", "segment_map", "oom"):
                self._empty_cache()
            self._returned = False

    def _empty_cache(self) -> None:
        if self.log.emptied[-1:] != [len(self.log.order)]:
            self.log.empty_cache()

    def _complete(self, address: int) -> None:
        """A block that was freed is free from here on: no other stream uses it any more."""
        self._neighbours.give_back(address)
        if address in self._freed:
            number, position = self._freed.pop(address)
            if len(self.log.order) > position:
                self.log.used_until(number, len(self.log.order))
            else:
                self.entry_of[-1] = len(self.entries) - 1

    def _free(self, address: int, index: int) -> None:
        number = self._alive.pop(address)
        self.log.free(number)
        self.entry_of.append(index)
        category = self.log.category(number)
        if category == "optimizer_state" and not self._is_named:
            self.log.classify(number, "workspace")  # the state itself stays
        elif category == "unknown" and number >= self.first and not self._is_named:
            self.log.classify(number, "activations")  # made and freed while the program ran

    def _run_out(self, raw: Mapping[str, Any]) -> None:
        free = _number(raw, "device_free" if "device_free" in raw else "addr")
        reserved = self.now.reserved_bytes
        origin = self._origins.of_entry(raw)
        wanted = _number(raw, "size")
        scratch = EventLog()
        scratch.allocate(wanted, origin.label, origin.category)
        self.out_of_memory = OutOfMemory(
            phase="run",
            wanted_bytes=self._rules.segment_bytes(self._rules.rounded(wanted)),
            free_bytes=free,
            capacity_bytes=reserved + free,
            reserved_bytes=reserved,
            allocated_bytes=sum(self.held[number] for number in self._alive.values()),
            tensor=Patterns(scratch).merged([0], scratch.sizes, 1)[0],
        )


def _time(entry: Mapping[str, Any]) -> int:
    time = entry.get("time_us")
    return time if isinstance(time, int) else 0


def _stream(entry: Mapping[str, Any]) -> int:
    stream = entry.get("stream")
    return stream if isinstance(stream, int) else 0


def _number(entry: Mapping[str, Any], name: str) -> int:
    value = entry.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _LARGEST:
        raise CorruptFile(f"not a memory snapshot: `{name}` is {str(value)[:40]}")
    return value
