"""What the caching allocator takes of the device for a step: its allocations and frees, in their order and streams."""

from __future__ import annotations

from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.budget.caching_allocator.simulator import CachingAllocator
from memplan.budget.training.device import Device


def reserved_bytes(device: Device, settings: AllocatorSettings | None = None) -> int:
    """The most that is reserved, on a device without a limit."""
    allocator = CachingAllocator(settings or AllocatorSettings())
    live = {}
    blocks = device.blocks
    for number in device.events():
        if number >= 0:
            block = blocks[number]
            if block.size_bytes:
                live[number] = allocator.allocate(block.size_bytes, block.stream)
        elif ~number in live:
            allocator.free(live.pop(~number))
    return allocator.peak_reserved_bytes
