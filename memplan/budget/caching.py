"""A replay of PyTorch's CUDA caching allocator: what a sequence of allocations and frees leaves reserved.

Follows the rules that `memplan.budget.allocator` lists, with frees: a freed block merges with free neighbours of its
segment and stays cached, so that the device is short of the segments, not of the live blocks. One stream, no
expandable segments. Segments are kept, as on a device with room to spare, or given back before a new one is taken,
as on a device that is full: then a request that finds no room makes torch return every segment without a live block.

Source: c10/cuda/CUDACachingAllocator.cpp, PyTorch 1.13 to 2.13.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import count

from memplan.units import MIB, round_up

_ROUND = 512
_SMALL_REQUEST = MIB
_SMALL_SEGMENT = 2 * MIB
_LARGE_SEGMENT = 20 * MIB
_OWN_SEGMENT = 10 * MIB


class Block:
    """A piece of a segment, linked to its neighbours."""

    __slots__ = ("before", "behind", "is_free", "is_small", "number", "size")

    def __init__(self, size: int, number: int, *, is_small: bool) -> None:
        self.size = size
        self.number = number
        self.is_small = is_small
        self.is_free = False
        self.before: Block | None = None
        self.behind: Block | None = None


class CachingAllocator:
    """Allocate and free by size; `reserved_bytes` and `allocated_bytes` follow the device's point of view.

    `is_pressed` gives empty segments back whenever a new one is taken, which is what a full device forces.
    """

    def __init__(self, *, is_pressed: bool = False) -> None:
        self._is_pressed = is_pressed
        self._numbers = count()
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self.reserved_bytes = 0
        self.allocated_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0

    def allocate(self, request: int) -> Block:
        """Return a block of at least `request` bytes."""
        size = round_up(max(request, 1), _ROUND)
        is_small = size <= _SMALL_REQUEST
        block = self._take(size, is_small) or self._segment(size, is_small)
        remainder = block.size - size
        if remainder >= _ROUND if is_small else remainder > MIB:
            self._split(block, size)
        block.is_free = False
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def free(self, block: Block) -> None:
        """Give a block back to the cache."""
        self.allocated_bytes -= block.size
        block.is_free = True
        before, behind = block.before, block.behind
        if behind is not None and behind.is_free:
            self._forget(behind)
            self._join(block, behind)
        if before is not None and before.is_free:
            self._forget(before)
            self._join(before, block)
            block = before
        insort(self._free[block.is_small], (block.size, block.number, block))

    def _take(self, size: int, is_small: bool) -> Block | None:
        """Remove and return the smallest cached block that holds `size`."""
        cached = self._free[is_small]
        index = bisect_left(cached, (size, -1))
        return cached.pop(index)[2] if index < len(cached) else None

    def _segment(self, size: int, is_small: bool) -> Block:
        if is_small:
            length = _SMALL_SEGMENT
        else:
            length = _LARGE_SEGMENT if size < _OWN_SEGMENT else round_up(size, _SMALL_SEGMENT)
        if self._is_pressed:
            self._give_back()
        self.reserved_bytes += length
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return Block(length, next(self._numbers), is_small=is_small)

    def _give_back(self) -> None:
        """Return every segment that has no live block."""
        for is_small, cached in self._free.items():
            kept = [entry for entry in cached if entry[2].before is not None or entry[2].behind is not None]
            self.reserved_bytes -= sum(size for size, _, _ in cached) - sum(size for size, _, _ in kept)
            self._free[is_small] = kept

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.size - size, next(self._numbers), is_small=block.is_small)
        rest.is_free = True
        rest.before, rest.behind = block, block.behind
        if block.behind is not None:
            block.behind.before = rest
        block.behind, block.size = rest, size
        insort(self._free[rest.is_small], (rest.size, rest.number, rest))

    def _forget(self, block: Block) -> None:
        cached = self._free[block.is_small]
        cached.pop(bisect_left(cached, (block.size, block.number)))

    def _join(self, left: Block, right: Block) -> None:
        left.size += right.size
        left.behind = right.behind
        if right.behind is not None:
            right.behind.before = left
