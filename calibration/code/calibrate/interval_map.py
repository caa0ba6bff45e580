"""A map from half-open integer intervals to values, kept as sorted, disjoint pieces.

Setting a range overwrites whatever part of older ranges lies under it, as paint does. Neighbouring
pieces with equal values are joined, so the map is as short as it can be, and two maps that answer
every question alike compare equal.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Generic, Iterator, TypeVar

V = TypeVar("V")


class IntervalMap(Generic[V]):
    """Ranges of integers, each with a value; everything else has none."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[V] = []

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        return iter(zip(self._starts, self._ends, self._values))

    def get(self, point: int, default: V | None = None) -> V | None:
        """The value at one point."""
        index = bisect_right(self._starts, point) - 1
        if index >= 0 and point < self._ends[index]:
            return self._values[index]
        return default

    def set(self, start: int, end: int, value: V) -> None:
        """Give every point of [start, end) this value."""
        if start >= end:
            return
        first, last = self._clear(start, end)
        if first > 0 and self._ends[first - 1] == start and self._values[first - 1] == value:
            first -= 1
            start = self._starts[first]
        if last < len(self) and self._starts[last] == end and self._values[last] == value:
            end = self._ends[last]
            last += 1
        self._replace(first, last, [(start, end, value)])

    def delete(self, start: int, end: int) -> None:
        """Take the value away from every point of [start, end)."""
        if start < end:
            self._clear(start, end)

    def covered(self, start: int, end: int) -> int:
        """How many points of [start, end) have a value."""
        total = 0
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self) and self._starts[index] < end:
            total += max(0, min(end, self._ends[index]) - max(start, self._starts[index]))
            index += 1
        return total

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [start, end) that have no value."""
        at = start
        for low, high, _ in self:
            if high <= at:
                continue
            if low >= end:
                break
            if low > at:
                yield at, low
            at = max(at, high)
        if at < end:
            yield at, end

    def _clear(self, start: int, end: int) -> tuple[int, int]:
        """Cut a hole. Returns the position at which a piece for the hole would be inserted, twice."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        kept: list[tuple[int, int, V]] = []
        if first < last:
            if self._starts[first] < start:
                kept.append((self._starts[first], start, self._values[first]))
            if self._ends[last - 1] > end:
                kept.append((end, self._ends[last - 1], self._values[last - 1]))
            self._replace(first, last, kept)
        position = bisect_left(self._starts, start)
        return position, position

    def _replace(self, first: int, last: int, pieces: list[tuple[int, int, V]]) -> None:
        self._starts[first:last] = [piece[0] for piece in pieces]
        self._ends[first:last] = [piece[1] for piece in pieces]
        self._values[first:last] = [piece[2] for piece in pieces]


def from_pairs(pairs: dict[tuple[int, int], V]) -> IntervalMap[V]:
    """Build a map from ranges in the order in which they should be painted."""
    built: IntervalMap[V] = IntervalMap()
    for (start, end), value in pairs.items():
        built.set(start, end, value)
    return built


if __name__ == "__main__":
    days = from_pairs({(0, 7): "home", (2, 5): "away", (5, 6): "home"})
    assert list(days) == [(0, 2, "home"), (2, 5, "away"), (5, 7, "home")]
    days.delete(1, 3)
    assert days.get(1) is None and days.get(3) == "away"
    assert list(days.gaps(0, 8)) == [(1, 3), (7, 8)]
    assert days.covered(0, 10) == 5
