"""The caching allocator with expandable_segments:True: a segment for each pool that grows and shrinks by pages.

A segment is a stretch of addresses as long as the device's memory and an eighth more. Pages (2 MiB for small blocks,
20 MiB for large ones) are mapped where the lowest stretch of free and unmapped addresses is long enough, and whole
free pages are unmapped when the device is full, so that a free page is never lost to a live neighbour.
"""

from __future__ import annotations

from bisect import insort

from memplan.budget.allocator import SMALL_SEGMENT_BYTES
from memplan.budget.caching_allocator.blocks import Block, Pool
from memplan.budget.caching_allocator.simulator import CachingAllocator
from memplan.units import round_up

# Addresses of a segment where nothing limits the device. Up to 2^8 such segments fit below ADDRESS_BITS.
_UNLIMITED = 1 << 40


class ExpandableAllocator(CachingAllocator):
    """The same interface; `inactive_split_bytes` counts the free bytes of pages that a live block shares.

    PyTorch's own statistic leaves expandable segments out and says 0.
    """

    splits_all = True
    _peak_is_new = False

    def allocate(self, requested: int, stream: int = 0) -> Block:
        """Return a live block of at least `requested` bytes. Raises: DeviceFull."""
        before = self.peak_allocated_bytes
        block = super().allocate(requested, stream)
        self._peak_is_new = self._peak_is_new or self.peak_allocated_bytes > before
        return block

    def free(self, block: Block) -> None:
        """Give a live block back to the cache."""
        self._settle_peak()
        super().free(block)

    def free_later(self, block: Block, ready: int) -> None:
        """Give a live block back once other streams are done with it."""
        self._settle_peak()
        super().free_later(block, ready)

    def empty_cache(self) -> None:
        """Return to the device every page that holds nothing."""
        self._settle_peak()
        super().empty_cache()

    @property
    def inactive_split_bytes(self) -> int:
        """Free bytes in pages that are partly in use."""
        return self._shared_page_bytes()

    @property
    def peak_inactive_split_bytes(self) -> int:
        """The same at the peak of allocated bytes."""
        self._settle_peak()
        return self._split_at_peak_bytes

    def reset_peak(self, *, keep_reserved: bool = False) -> None:
        """Make this moment the peak."""
        super().reset_peak(keep_reserved=keep_reserved)
        self._peak_is_new = True

    def _settle_peak(self) -> None:
        """Count what is split at a peak once, when the level is about to fall from it."""
        if self._peak_is_new:
            self._peak_is_new = False
            if self.allocated_bytes == self.peak_allocated_bytes:
                self._split_at_peak_bytes = self._shared_page_bytes()

    def _shared_page_bytes(self) -> int:
        total = 0
        for streams in self._pools.values():
            for pool in streams.values():
                page = self._page_bytes(pool)
                for block in pool.blocks:
                    whole = (block.start + block.size) // page * page - round_up(block.start, page)
                    total += block.size - max(whole, 0)
        return total

    def _page_bytes(self, pool: Pool) -> int:
        return SMALL_SEGMENT_BYTES if pool.is_small else self.settings.large_segment_bytes

    def _may_split(self, pool: Pool, size: int) -> bool:
        return True

    def _chosen(self, pool: Pool, size: int, index: int) -> int:
        """Of the free blocks that fit, one at the end of the mapped part counts with all it could grow to."""
        blocks = pool.blocks
        while index + 1 < len(blocks) and _could_be(blocks[index + 1]) < _could_be(blocks[index]):
            index += 1
        return super()._chosen(pool, size, index)

    def _extend(self, pool: Pool, size: int) -> Block | None:
        """Map pages behind the lowest addresses where `size` bytes have room, or None where no memory is left."""
        if self.reserved_bytes + self.segment_bytes(size) > self._allowed:
            return None
        block = self._lowest_room(pool, size)
        if not block.is_mapped:
            mapped = self._map(block, min(block.size, size))
            if mapped is None:
                if not block.is_split:  # nothing of this segment was ever mapped
                    pool.unmapped.remove(block)
                    self._forget(block)
                return None
            block = mapped
        while block.size < size:
            unmapped = block.after
            assert unmapped is not None  # _lowest_room saw enough addresses
            mapped = self._map(unmapped, min(size - block.size, unmapped.size))
            if mapped is None:
                return None
            block = mapped
        pool.remove(block)
        return block

    def _lowest_room(self, pool: Pool, size: int) -> Block:
        """The first block of the lowest stretch of free and unmapped blocks with `size` bytes, in a new segment if
        there is none."""
        for unmapped in pool.unmapped:
            first = unmapped.before if unmapped.before is not None and unmapped.before.is_free else unmapped
            room, block = 0, first
            while True:
                room += block.size
                if room >= size:
                    return first
                if block.after is None or not (block.after.is_free or not block.after.is_mapped):
                    break
                block = block.after
        page = self._page_bytes(pool)
        addresses = _UNLIMITED if self.capacity_bytes is None else self.capacity_bytes + self.capacity_bytes // 8
        start = round_up(self._next_address, page)
        block = Block(round_up(max(addresses, size), page), start, pool, None, None)
        block.is_mapped = False
        self._next_address = start + block.size
        self._heads[start] = block
        self.num_segments += 1
        pool.unmapped.append(block)
        return block

    def _map(self, block: Block, size: int) -> Block | None:
        """Back the first `size` bytes of an unmapped block with pages; return the free block that they end up in."""
        pool = block.pool
        length = round_up(size, self._page_bytes(pool))
        if self.reserved_bytes + length > self._room:
            return None
        pool.unmapped.remove(block)
        if length < block.size:
            rest = Block(block.size - length, block.start + length, pool, block, block.after)
            rest.is_mapped = False
            if block.after is not None:
                block.after.before = rest
            block.after = rest
            block.size = length
            insort(pool.unmapped, rest, key=_start)
        block.is_mapped = True
        start = block.start
        before, after = block.before, block.after
        if after is not None and after.is_free:
            pool.remove(after)
            _join(block, after)
        if before is not None and before.is_free:
            pool.remove(before)
            _join(before, block)
            block = before
        pool.add(block)
        self._reserve(start, length, pool)
        return block

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        return False

    def _collect_garbage(self) -> None:
        """Nothing: only whole segments are collected, and an expandable one never is."""

    def _release_cached(self) -> None:
        self._synchronize()
        for pool in self._releasable_pools():
            for block in list(pool.blocks):
                self._unmap(block)

    def _unmap(self, block: Block) -> None:
        """Return the whole pages inside a free block, and the segment with them when nothing else is in it."""
        pool, page = block.pool, self._page_bytes(block.pool)
        start, stop = round_up(block.start, page), (block.start + block.size) // page * page
        if start >= stop:
            return
        pool.remove(block)
        if stop < block.start + block.size:
            pool.add(block.cut(stop))
        if start > block.start:
            hole = block.cut(start)
            pool.add(block)
            block = hole
        block.is_mapped = False
        before, after = block.before, block.after
        if after is not None and not after.is_mapped:
            pool.unmapped.remove(after)
            _join(block, after)
        if before is not None and not before.is_mapped:
            pool.unmapped.remove(before)
            _join(before, block)
            block = before
        # The lower of two unmapped blocks stays, and goes back to its place below.
        self._reserve(start, start - stop, pool)
        if block.is_split:
            insort(pool.unmapped, block, key=_start)
        else:
            self._forget(block)

    def _forget(self, block: Block) -> None:
        """The addresses of a whole segment are given back."""
        del self._heads[block.start]
        self.num_segments -= 1


def _could_be(block: Block) -> int:
    after = block.after
    return block.size + (after.size if after is not None and not after.is_mapped else 0)


def _start(block: Block) -> int:
    return block.start


def _join(lower: Block, upper: Block) -> None:
    """Let a block take over its upper neighbour."""
    lower.size += upper.size
    lower.after = upper.after
    if upper.after is not None:
        upper.after.before = lower
