"""The allocation that transformers makes before it loads weights: all of their bytes at once, given back immediately.

It leaves the allocator with one segment that the weights are then cut from. On a device that is too small for it,
transformers asks for less, and the load fails at a weight.

Source: transformers 5.23 `modeling_utils.py`, caching_allocator_warmup.
"""

from __future__ import annotations

from memplan.profile.events import EventLog
from memplan.records import replace
from memplan.units import GIB

WARM_UP = "caching_allocator_warmup"
_LEFT_BYTES = int(1.2 * GIB)


def warmed_up_on(log: EventLog, capacity_bytes: int | None) -> EventLog:
    """Return a trace as it would be on a device of `capacity_bytes`: itself where that has room for the warm-up."""
    room_bytes = None if capacity_bytes is None else max(capacity_bytes - _LEFT_BYTES, 1)
    if room_bytes is None or not log.sizes or max(log.sizes) <= room_bytes:
        return log
    warm_ups = {number for number, label in enumerate(log.labels) if label.operator == WARM_UP}
    sizes = log.sizes[:]
    for number, label in enumerate(log.label_of):
        if label in warm_ups:
            sizes[number] = min(sizes[number], room_bytes)
    return replace(log, sizes=sizes)
