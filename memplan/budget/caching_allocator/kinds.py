"""Which of the allocators some settings ask for."""

from __future__ import annotations

from memplan.budget.caching_allocator.direct import DirectAllocator
from memplan.budget.caching_allocator.expandable import ExpandableAllocator
from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.budget.caching_allocator.simulator import CachingAllocator


def make_allocator(
    settings: AllocatorSettings | None, *, capacity_bytes: int | None = None, outside_bytes: int = 0
) -> CachingAllocator:
    """The allocator that some settings ask for; None is a device that caches nothing, such as the CPU.

    `outside_bytes` of the capacity are held by others: the CUDA context, libraries, other processes.
    """
    kind = (
        DirectAllocator
        if settings is None
        else ExpandableAllocator
        if settings.expandable_segments
        else CachingAllocator
    )
    room = None if capacity_bytes is None else max(capacity_bytes - outside_bytes, 0)
    return kind(settings or AllocatorSettings(), capacity_bytes=capacity_bytes, room_bytes=room)
