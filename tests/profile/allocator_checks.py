"""What must hold of a simulated allocator at any moment, counted block by block."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from memplan.budget.caching_allocator.blocks import Block
from memplan.budget.caching_allocator.expandable import ExpandableAllocator
from memplan.budget.caching_allocator.simulator import CachingAllocator


def check(allocator: CachingAllocator, live: Iterable[Block], waiting: Iterable[Block] = ()) -> None:
    """Assert that blocks fill their segments without overlap and that every level is the sum of its blocks."""
    live, waiting = list(live), list(waiting)
    busy = {id(block) for block in (*live, *waiting)}
    reserved = split = 0
    end_of_last = 0
    seen = set()
    for segment in allocator.segments():
        assert segment[0].start >= end_of_last
        address = segment[0].start
        for block in segment:
            assert block.start == address
            assert block.size > 0
            assert block.size % 512 == 0
            assert (id(block) in busy) != block.is_free
            address += block.size
            seen.add(id(block))
        for left, right in pairwise(segment):
            assert left.after is right
            assert right.before is left
            assert not (left.is_free and right.is_free)
        reserved += address - segment[0].start
        end_of_last = address
        if not isinstance(allocator, ExpandableAllocator):
            split += sum(block.size for block in segment if block.is_free and len(segment) > 1)
    assert busy <= seen
    assert reserved == allocator.reserved_bytes
    assert sum(block.size for block in live) == allocator.allocated_bytes
    assert sum(block.requested for block in (*live, *waiting)) == allocator.requested_bytes
    assert allocator.allocated_bytes <= allocator.reserved_bytes
    if isinstance(allocator, ExpandableAllocator):
        check_pages(allocator)
    else:
        assert allocator.inactive_split_bytes == split


def check_pages(allocator: ExpandableAllocator) -> None:
    """Assert that mapped stretches are whole pages, and count the free bytes of shared pages page by page."""
    shared = 0
    for segment in allocator.segments():
        page = (2 if segment[0].pool.is_small else 20) << 20
        length = sum(block.size for block in segment)
        assert segment[0].start % page == 0
        assert length % page == 0
        for start in range(segment[0].start, segment[0].start + length, page):
            inside = [
                (min(block.start + block.size, start + page) - max(block.start, start), block.is_free)
                for block in segment
            ]
            free = sum(size for size, is_free in inside if size > 0 and is_free)
            shared += free if free < page else 0
        unmapped = [block.start for block in segment[0].pool.unmapped]
        assert unmapped == sorted(set(unmapped))
        assert not any(block.is_mapped or block.is_free for block in segment[0].pool.unmapped)
    assert allocator.inactive_split_bytes == shared
