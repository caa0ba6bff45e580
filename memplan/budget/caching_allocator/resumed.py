"""The caching allocator of a device that is already in use, with new segments where a real one put them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from memplan.budget.caching_allocator.blocks import Block
from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.budget.caching_allocator.simulator import CachingAllocator


class ResumedAllocator(CachingAllocator):
    """Goes on from segments that it is told of. `place` says at which address a new segment of so many bytes lies.

    With that, nothing is left to chance: every request has to land where the real allocator put it.
    """

    def __init__(self, settings: AllocatorSettings, *, place: Callable[[int], int]) -> None:
        super().__init__(settings)
        self._place = place

    def adopt_segment(
        self, start: int, length: int, blocks: Iterable[tuple[int, int, int]], *, is_small: bool, stream: int = 0
    ) -> list[Block]:
        """Take in a segment as it is, with its blocks in use as (address, size, requested) by address; return these."""
        streams = self._small if is_small else self._large
        pool = streams.get(stream) or self._new_pool(streams, stream)
        block = self._heads[start] = Block(length, start, pool, None, None)
        live: list[Block] = []
        for address, size, requested in blocks:
            if address > block.start:
                free, block = block, block.cut(address)
                pool.add(free)
            if address + size < start + length:
                block.cut(address + size)
            block.requested = requested
            self.allocated_bytes += block.size
            self.requested_bytes += requested
            live.append(block)
            block = block.after or block
        if not live or block is not live[-1]:
            pool.add(block)
        if live:
            self._split_bytes += length - sum(each.size for each in live)
        self._reserve(start, length, pool)
        self.num_segments += 1
        return live

    def return_segment(self, start: int) -> None:
        """Return a segment to the device, if nothing is in it."""
        block = self._heads.get(start)
        if block is not None and block.is_free and not block.is_split:
            self._release(block)

    def _address_for(self, length: int) -> int:
        return self._place(length)
