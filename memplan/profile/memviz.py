"""Writes a trace as the snapshot file that pytorch.org/memory_viz and PyTorch's own tools read.

The trace is run through the simulated allocator, so that the file has addresses, segments and blocks, as if a GPU had
been there. Every entry names its category, by which the viewer then colours; the frames are the operator, the line of
code and the module.

The viewer reads pickles of protocol 2 to 4 that hold plain containers, and fails on categories among which there is no
"unknown". Source: torch/utils/viz/MemoryViz.js, PyTorch 2.6, and the page as it was in 2026.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from memplan.budget.caching_allocator.blocks import Block, DeviceFull, Pool
from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.budget.caching_allocator.simulator import CachingAllocator
from memplan.domain.timeline import CATEGORIES, Category, MemoryTimeline, Phase
from memplan.profile.events import EventLog, Label
from memplan.profile.snapshot_frames import MODULE_FRAME, OPERATOR_FRAME

_PROTOCOL = 4
Entry = dict[str, Any]


def write_memviz(path: Path, snapshot: dict[str, Any]) -> None:
    """Write a snapshot as a file. Raises: OSError."""
    path.write_bytes(pickle.dumps(snapshot, protocol=_PROTOCOL))


def snapshot_from(
    log: EventLog,
    settings: AllocatorSettings | None = None,
    *,
    capacity_bytes: int | None = None,
    outside_bytes: int = 0,
) -> dict[str, Any]:
    """Return a trace as a snapshot of device 0, with its history from the first event on."""
    settings = settings or AllocatorSettings()
    allocator = make_allocator(settings, capacity_bytes=capacity_bytes, outside_bytes=outside_bytes)
    tape = _Tape(log, allocator)
    tape.run()
    return {
        "segments": [_segment(blocks, tape) for blocks in allocator.segments()],
        "device_traces": [[*tape.entries, {"action": "snapshot", "addr": 0, "size": 0, **_END}]],
        "external_annotations": tape.annotations,
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": settings.describe(),
            "expandable_segments": settings.expandable_segments,
            "garbage_collection_threshold": settings.gc_threshold,
            "max_split_size": -1 if settings.max_split_bytes is None else settings.max_split_bytes,
        },
    }


_EMPTYING: list[Entry] = [{"filename": OPERATOR_FRAME, "line": 0, "name": "empty_cache"}]
_END: Entry = {"stream": 0, "frames": [], "category": "unknown"}


class _Tape:
    """Runs a trace and keeps what the allocator's own history would have."""

    def __init__(self, log: EventLog, allocator: CachingAllocator) -> None:
        self.log = log
        self.allocator = allocator
        self.entries: list[Entry] = []
        self.annotations: list[Entry] = []
        self.number_of: dict[int, int] = {}
        self.waiting: set[int] = set()
        self.frames = [_frames(label) for label in log.labels]
        self._blocks: list[Block] = []
        self._is_expandable = allocator.splits_all
        self._is_emptying = False
        self.position = 0  # time goes by events
        allocator.on_reserve = self._segment_changed
        allocator.on_ready = self._complete

    def run(self) -> None:
        """Every event, until memory runs out."""
        marks = {mark.position: mark.phase for mark in self.log.marks}
        emptied = set(self.log.emptied)
        for position, event in enumerate(self.log.order):
            self.position = position
            if position in emptied:
                self._is_emptying = True
                self.allocator.empty_cache()
                self._is_emptying = False
            if position in marks:
                self._enter(marks[position])
            if event < 0:
                self._free(~event, position)
            elif not self._allocate(event - 1, position):
                break
        self.position = len(self.log.order)
        self._leave()

    def _leave(self) -> None:
        if self.annotations:
            self._note_phase("END", self.annotations[-1]["name"])

    def _note_phase(self, stage: str, name: str) -> None:
        self.annotations.append({"stage": stage, "name": name, "device": 0, "time_us": self.position})

    def _enter(self, phase: Phase) -> None:
        self._leave()
        self._note_phase("START", phase)
        if phase == "capture":
            self.allocator.begin_pool(0)
        else:
            self.allocator.end_pool()

    def _allocate(self, number: int, position: int) -> bool:
        self.allocator.advance(position)
        size, stream = self.log.sizes[number], self.log.stream_of[number]
        try:
            block = self.allocator.allocate(size, stream)
        except DeviceFull as full:
            self._note("oom", 0, self.allocator.rounded(size), stream, number)
            self.entries[-1]["device_free"] = full.free_bytes
            return False
        self._blocks.append(block)
        self.number_of[block.start] = number
        self._note("alloc", block.start, size, stream, number)
        return True

    def _free(self, number: int, position: int) -> None:
        block = self._blocks[number]
        self._note("free_requested", block.start, self.log.sizes[number], self.log.stream_of[number], number)
        ready = self.log.ready_at.get(number, 0)
        if ready > position:
            self.waiting.add(block.start)
            self.allocator.free_later(block, ready)
        else:
            self._complete(block)
            self.allocator.free(block)

    def _complete(self, block: Block) -> None:
        """The block is about to become free."""
        number = self.number_of.pop(block.start)
        self.waiting.discard(block.start)
        self._note("free_completed", block.start, self.log.sizes[number], self.log.stream_of[number], number)

    def _segment_changed(self, address: int, change: int, pool: Pool) -> None:
        grown, shrunk = ("segment_map", "segment_unmap") if self._is_expandable else ("segment_alloc", "segment_free")
        self._note(grown if change > 0 else shrunk, address, abs(change), pool.stream, None)
        if self._is_emptying:
            self.entries[-1]["frames"] = _EMPTYING

    def _note(self, action: str, address: int, size: int, stream: int, number: int | None) -> None:
        entry: Entry = {
            "action": action,
            "addr": address,
            "size": size,
            "stream": stream,
            "time_us": self.position,
            "frames": [] if number is None else self.frames[self.log.label_of[number]],
        }
        if number is not None:
            entry["category"] = self.log.category(number)
        self.entries.append(entry)


def _frames(label: Label) -> list[Entry]:
    """What is known of an allocation's origin as frames, innermost first."""
    frames: list[Entry] = []
    if label.operator:
        shape = f" {label.dtype}[{', '.join(map(str, label.shape))}]" if label.shape else ""
        frames.append({"filename": OPERATOR_FRAME, "line": 0, "name": label.operator + shape})
    if label.where:
        place, _, function = label.where.partition(" ")
        file, _, line = place.rpartition(":")
        known = bool(file) and line.isdigit()
        frames.append(
            {"filename": file if known else place, "line": int(line) if known else 0, "name": function or "line"}
        )
    if label.module:
        frames.append({"filename": MODULE_FRAME, "line": 0, "name": label.module})
    return frames


def _segment(blocks: list[Block], tape: _Tape) -> Entry:
    pool = blocks[0].pool
    written = [_block(block, tape) for block in blocks]
    active = [block for block in blocks if not block.is_free]
    return {
        "device": 0,
        "address": blocks[0].start,
        "total_size": sum(block.size for block in blocks),
        "allocated_size": sum(block.size for block in active if block.start not in tape.waiting),
        "active_size": sum(block.size for block in active),
        "requested_size": sum(block.requested for block in active),
        "stream": pool.stream,
        "segment_type": "small" if pool.is_small else "large",
        "segment_pool_id": (0, 0) if pool.owner is None else (pool.owner + 1, 0),
        "is_expandable": tape.allocator.splits_all,
        "frames": [],
        "blocks": written,
    }


def _block(block: Block, tape: _Tape) -> Entry:
    state = "active_allocated"
    if block.is_free:
        state = "inactive"
    elif block.start in tape.waiting:
        state = "active_pending_free"
    number = tape.number_of.get(block.start)
    return {
        "address": block.start,
        "size": block.size,
        "requested_size": block.requested if not block.is_free else 0,
        "state": state,
        "frames": [] if number is None or block.is_free else tape.frames[tape.log.label_of[number]],
    }


def log_from(timeline: MemoryTimeline) -> EventLog:
    """A trace with the curve of a timeline that has no trace left: each category grows and shrinks in steps."""
    log = EventLog()
    held: dict[Category, list[tuple[int, int]]] = {category: [] for category in CATEGORIES}
    phase: Phase | None = None
    for sample in timeline.samples:
        if sample.phase != phase:
            phase = sample.phase
            log.begin(phase)
        for category, pieces in held.items():
            change = sample.by_category.get(category, 0) - sum(size for _, size in pieces)
            while change < 0:
                number, size = pieces.pop()
                log.free(number)
                change += size
            if change > 0:
                pieces.append((log.allocate(change, Label(module=category), category), change))
    return log
