"""How large a block was, from where its neighbours lay: what a request was given beyond its rounded size."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

from memplan.budget.allocator import LARGE_REMAINDER_BYTES, SMALL_REQUEST_BYTES
from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.profile.snapshot_device import Entry


class Neighbours:
    """The segments and the blocks that are not free, by address, as the history goes on.

    A large request keeps what is left of the free block that it was given when that is 1 MiB or less, or when it may
    not be split; free blocks that lie together are one, so that what was left is the way to the next block in use.
    """

    def __init__(self, settings: AllocatorSettings, segments: dict[int, int]) -> None:
        self._limit = settings.max_split_bytes
        self._segments = dict(segments)
        self._starts = sorted(segments)
        self._used: list[int] = []
        self._sizes: dict[int, int] = {}
        self.corrected: tuple[int, int] | None = None

    def apply(self, entry: Entry) -> None:
        """Take in what happened to a whole segment; expandable ones give no block more than its rounded size."""
        if entry.action == "segment_alloc":
            if entry.address not in self._segments:
                insort(self._starts, entry.address)
            self._segments[entry.address] = entry.size_bytes
        elif entry.action == "segment_free" and self._segments.pop(entry.address, None) is not None:
            self._starts.remove(entry.address)

    def take(self, address: int, rounded: int) -> int:
        """A block at `address` is in use from here on; return its size.

        A block is always cut from the lower end of a free one. A gap of 1 MiB or less below `address` therefore belongs
        to the block before it, which was there before the history began: its address and size are then `corrected`.
        """
        index = bisect_left(self._used, address)
        if index == len(self._used) or self._used[index] != address:
            self._used.insert(index, address)
        place = bisect_right(self._starts, address) - 1
        size = rounded
        self.corrected = None
        if place >= 0 and rounded > SMALL_REQUEST_BYTES:
            start = self._starts[place]
            size = self._with_rest(address, rounded, start + self._segments[start], index)
            self._correct(address, start, index)
        self._sizes[address] = size
        return size

    def _with_rest(self, address: int, rounded: int, end: int, index: int) -> int:
        if index + 1 < len(self._used):
            end = min(end, self._used[index + 1])
        rest = end - address - rounded
        keeps_all = rest <= LARGE_REMAINDER_BYTES or (self._limit is not None and rounded >= self._limit)
        return rounded + rest if rest > 0 and keeps_all else rounded

    def _correct(self, address: int, start: int, index: int) -> None:
        below = self._used[index - 1] if index else -1
        if below >= start and 0 < address - below - self._sizes[below] <= LARGE_REMAINDER_BYTES:
            self._sizes[below] = address - below
            self.corrected = below, address - below

    def give_back(self, address: int) -> None:
        """The block at `address` is free again."""
        index = bisect_left(self._used, address)
        if index < len(self._used) and self._used[index] == address:
            del self._used[index], self._sizes[address]
