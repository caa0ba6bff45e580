"""Every diagnosis of a profile, each with its evidence and the change that mends it, the gravest first.

What is said of the allocator, and of a preallocated cache, was replayed; nothing is advised on faith.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.domain.timeline import Finding, MemoryTimeline, OutOfMemory
from memplan.profile.advice import allocator_advice, pool_advice
from memplan.profile.capturing import capture_breaks
from memplan.profile.events import EventLog
from memplan.profile.lasting import full_precision, growth, kept_caches, tracked_gradients, unused_batch
from memplan.profile.spikes import spikes
from memplan.units import MIB, format_gib

_GRAVITY = {"error": 0, "warning": 1, "note": 2}
_LEAST_BYTES = 64 * MIB
_LEAST_SHARE = 0.05


def find(
    timeline: MemoryTimeline, log: EventLog | None = None, settings: AllocatorSettings | None = None
) -> tuple[Finding, ...]:
    """Return what is the matter with a run. Less is known without its trace, and without settings of an allocator."""
    found = [
        *_capacity(timeline),
        *growth(timeline, log),
        *spikes(timeline),
        *kept_caches(timeline, log),
        *full_precision(timeline, log),
        *unused_batch(timeline),
        *capture_breaks(timeline),
    ]
    if log is not None:
        found += tracked_gradients(timeline, log)
        if settings is not None:
            found += allocator_advice(log, settings, timeline.capacity_bytes, timeline.outside_bytes or 0)
            found += pool_advice(log, settings)
    if (log is None or settings is None) and timeline.device != "cpu" and timeline.out_of_memory is None:
        found += _fragmentation(timeline)
    return tuple(sorted(found, key=lambda finding: (_GRAVITY[finding.severity], -(finding.saves_bytes or 0))))


def _capacity(timeline: MemoryTimeline) -> Iterator[Finding]:
    """Why memory ran out: too little of it, or enough of it in pieces."""
    full = timeline.out_of_memory
    if full is None:
        return
    in_pieces = max(0, full.reserved_bytes - full.allocated_bytes)
    room = full.free_bytes + in_pieces
    if full.reserved_bytes and full.wanted_bytes <= room:
        yield _pieces(full, in_pieces)
        return
    most = max(phase.peak_reserved_bytes for phase in timeline.phases)
    short = max(full.wanted_bytes - room, most - full.capacity_bytes)
    yield Finding(
        code="capacity",
        title=f"the device is too small: {full.phase} runs out of memory",
        evidence=f"{format_gib(full.allocated_bytes)} are allocated, {format_gib(in_pieces)} reserved but free, "
        f"{format_gib(full.free_bytes)} free on the device; the run needs {format_gib(short)} more",
        mend="fewer or shorter requests, narrower weights or cache, more devices: memplan estimate lists what each"
        " returns",
        severity="error",
    )


def _pieces(full: OutOfMemory, in_pieces: int) -> Finding:
    return Finding(
        code="fragmentation",
        title=f"{full.phase} runs out of memory although enough is free, in pieces",
        evidence=f"{format_gib(full.wanted_bytes)} are wanted; {format_gib(in_pieces)} lie free in what is reserved, "
        f"{format_gib(full.free_bytes)} on the device",
        mend="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        severity="error",
    )


def _fragmentation(timeline: MemoryTimeline) -> Iterator[Finding]:
    """What lies free in segments that cannot be returned, where there is no trace to try settings on."""
    worst = max(timeline.phases, key=lambda phase: phase.peak.inactive_split_bytes)
    split, reserved = worst.peak.inactive_split_bytes, worst.peak_reserved_bytes
    if split < max(_LEAST_BYTES, _LEAST_SHARE * reserved):
        return
    yield Finding(
        code="fragmentation",
        title=f"{100 * split / reserved:.0f} % of what is reserved in {worst.phase} lies in pieces",
        evidence=f"{format_gib(worst.peak.allocated_bytes)} allocated, {format_gib(reserved)} reserved, of which "
        f"{format_gib(split)} are free in segments that a live block keeps",
        mend="try PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        severity="warning",
    )
