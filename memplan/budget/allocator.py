"""What PyTorch's CUDA caching allocator makes of a list of sizes that are never freed, such as a model's weights.

`torch.cuda.memory_allocated`, which engines print as the size of the weights, counts blocks, not requests: a request
is rounded up to 512 bytes, and a block keeps what is left of its segment when that is too little to split off (up to
1 MiB in the pool of large blocks). Qwen2.5-7B's 15.23 GB of weights are reported as 14.2487 GiB instead of 14.1847
GiB for this reason and for its rotary table.

Rules: requests up to 1 MiB live in segments of 2 MiB and split whenever 512 bytes are left; larger ones below 10 MiB
in segments of 20 MiB; larger ones still in a segment of their own, rounded up to 2 MiB; a large block splits when
more than 1 MiB is left, and never when it is larger than `max_split_bytes`. Free blocks are used best fit first.

Source: c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h, PyTorch 1.13 to 2.13.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from functools import lru_cache

from memplan.records import dataclass
from memplan.units import MIB, round_up

ROUND_BYTES = 512
SMALL_REQUEST_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
OWN_SEGMENT_BYTES = 10 * MIB
LARGE_REMAINDER_BYTES = MIB


@dataclass(frozen=True, slots=True)
class Allocation:
    """What the allocator holds after some requests: the blocks it handed out, and the segments they lie in.

    `allocated_bytes` is what `torch.cuda.memory_allocated` says, `reserved_bytes` what the device is short of: a
    segment with one block in use cannot be returned, so an engine that compares free memory before and after loading
    sees the segments.
    """

    allocated_bytes: int
    reserved_bytes: int


def allocated_bytes(requests: Iterable[int], *, max_split_bytes: int | None = None) -> int:
    """Return what the allocator reports as allocated after `requests`, in order, none of them freed."""
    return allocate(tuple(requests), max_split_bytes=max_split_bytes).allocated_bytes


@lru_cache(maxsize=64)
def allocate(requests: tuple[int, ...], *, max_split_bytes: int | None = None) -> Allocation:
    """Return what the allocator holds after `requests`, in order, none of them freed."""
    small: list[int] = []
    large: list[int] = []
    allocated = reserved = 0
    for request in requests:
        if request <= 0:
            continue
        size = round_up(request, ROUND_BYTES)
        free, is_small = (small, True) if size <= SMALL_REQUEST_BYTES else (large, False)
        block = _take(free, size)
        if block is None:
            block = _segment(size)
            reserved += block
        remainder = block - size
        if is_small:
            splits = remainder >= ROUND_BYTES
        else:
            splits = remainder > LARGE_REMAINDER_BYTES and (max_split_bytes is None or size < max_split_bytes)
        if splits:
            insort(free, remainder)
            block = size
        allocated += block
    return Allocation(allocated_bytes=allocated, reserved_bytes=reserved)


def _take(free: list[int], size: int) -> int | None:
    """Remove and return the smallest free block that holds `size`."""
    index = bisect_left(free, size)
    return free.pop(index) if index < len(free) else None


def _segment(size: int) -> int:
    if size <= SMALL_REQUEST_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < OWN_SEGMENT_BYTES:
        return LARGE_SEGMENT_BYTES
    return round_up(size, SMALL_SEGMENT_BYTES)
