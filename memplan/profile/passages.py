"""The first walk of a trace: the allocator runs it, phase by phase, and each phase's levels are noted."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.budget.caching_allocator.blocks import Block, DeviceFull
from memplan.budget.caching_allocator.simulator import CachingAllocator
from memplan.domain.timeline import Level
from memplan.errors import CorruptFile
from memplan.profile.events import EventLog, Mark
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One phase as the allocator saw it: the events `start` to `stop`, which made the allocations `first` to `last`."""

    mark: Mark
    start: int
    stop: int
    first: int
    last: int
    before: Level
    peak: Level
    after: Level
    peak_reserved_bytes: int


@dataclass(slots=True, kw_only=True)
class Walk:
    """What the first walk leaves: `held[i]` is the size of the block of allocation i; `full` says that it broke off,
    at the event `stop`, for want of memory. `reserved` has (number of the next allocation, level) at every change."""

    passages: list[Passage]
    held: list[int]
    blocks: list[Block | None]
    reserved: list[tuple[int, int]]
    stop: int
    full: DeviceFull | None = None


def check_order(log: EventLog) -> None:
    """Raise CorruptFile unless allocations are made in order, and freed at most once and not before they are made."""
    made = 0
    is_live = bytearray(len(log.sizes))
    for event in log.order:
        if event > 0:
            made += 1
            if event != made or made > len(is_live):
                raise CorruptFile(f"a trace makes allocation {event - 1} where {made - 1} comes next")
            is_live[event - 1] = 1
        elif not -event <= made or not is_live[~event]:
            raise CorruptFile(f"a trace frees allocation {~event}, which is not live")
        else:
            is_live[~event] = 0


def run_allocator(log: EventLog, allocator: CachingAllocator, *, shares_pools: bool) -> Walk:
    """Run a trace through an allocator. Phases of graph capture use a private pool: one for all, or one for each."""
    walk = Walk(passages=[], held=[], blocks=[], reserved=[], stop=len(log.order))
    allocator.on_reserve = lambda *_: walk.reserved.append((len(walk.held), allocator.reserved_bytes))
    first_mark = log.marks[0].position if log.marks else len(log.order)
    # What is emptied just before a capture is emptied in the phase before it: a capture gives nothing back.
    emptied = {mark.position for mark in log.marks if mark.phase == "capture"} & set(log.emptied)
    if _run(log, allocator, walk, 0, first_mark) in emptied:
        allocator.empty_cache()
    for number, (mark, start, stop) in enumerate(log.spans()):
        if walk.full is not None:
            break
        captures = mark.phase == "capture"
        if captures:
            allocator.begin_pool(0 if shares_pools else number)
        before, first = _level(allocator), len(walk.held)
        allocator.reset_peak()
        reached = _run(log, allocator, walk, start, stop)
        peak = Level(
            allocated_bytes=allocator.peak_allocated_bytes,
            reserved_bytes=allocator.reserved_at_peak_bytes,
            inactive_split_bytes=allocator.peak_inactive_split_bytes,
            requested_bytes=allocator.peak_requested_bytes,
        )
        if captures:
            allocator.end_pool()
        if reached == stop and stop in emptied:
            allocator.empty_cache()
        walk.passages.append(
            Passage(
                mark=mark,
                start=start,
                stop=reached,
                first=first,
                last=len(walk.held),
                before=before,
                peak=peak,
                after=_level(allocator),
                peak_reserved_bytes=allocator.peak_reserved_bytes,
            )
        )
    return walk


def _level(allocator: CachingAllocator) -> Level:
    return Level(
        allocated_bytes=allocator.allocated_bytes,
        reserved_bytes=allocator.reserved_bytes,
        inactive_split_bytes=allocator.inactive_split_bytes,
        requested_bytes=allocator.requested_bytes,
    )


def _run(log: EventLog, allocator: CachingAllocator, walk: Walk, start: int, stop: int) -> int:
    """Run the events from `start` to `stop`; return where it ended, which is earlier where memory ran out."""
    run = _run_streams if log.ready_at else _run_quickly
    try:
        for begin, end, empties in _pieces(log, start, stop):
            if empties:
                allocator.empty_cache()
            run(log, allocator, walk, begin, end)
    except DeviceFull as full:
        walk.full = full
        walk.stop = log.order.index(len(walk.held) + 1, start)
        return walk.stop
    return stop


def _pieces(log: EventLog, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
    """Cut a stretch where the cache is emptied: begin, end, whether it is emptied at the beginning."""
    begin, empties = start, False
    for position in log.emptied:
        if start <= position < stop:
            yield begin, position, empties
            begin, empties = position, True
    yield begin, stop, empties


def _run_quickly(log: EventLog, allocator: CachingAllocator, walk: Walk, start: int, stop: int) -> None:
    blocks, held, sizes, streams = walk.blocks, walk.held, log.sizes, log.stream_of
    allocate, free = allocator.allocate, allocator.free
    for event in log.order[start:stop]:
        if event > 0:
            block = allocate(sizes[event - 1], streams[event - 1])
            blocks.append(block)
            held.append(block.size)
        else:
            live = blocks[~event]
            blocks[~event] = None
            if live is not None:
                free(live)


def _run_streams(log: EventLog, allocator: CachingAllocator, walk: Walk, start: int, stop: int) -> None:
    """The same, where frees may have to wait for other streams."""
    for position in range(start, stop):
        event = log.order[position]
        if event > 0:
            allocator.advance(position)
            block = allocator.allocate(log.sizes[event - 1], log.stream_of[event - 1])
            walk.blocks.append(block)
            walk.held.append(block.size)
            continue
        number = ~event
        live = walk.blocks[number]
        walk.blocks[number] = None
        if live is None:
            continue
        if log.ready_at.get(number, 0) > position:
            allocator.free_later(live, log.ready_at[number])
        else:
            allocator.free(live)
