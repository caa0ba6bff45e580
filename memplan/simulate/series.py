"""The state of a replica over its steps, thinned evenly: every 2^k-th step, so that memory stays bounded."""

from __future__ import annotations

from array import array
from heapq import merge

from memplan.domain.simulation import Series
from memplan.simulate.clock import TICKS_PER_S
from memplan.simulate.room import State


class SeriesLog:
    """Keeps step 0, `stride`, 2 x `stride`...; the stride doubles when there are twice as many as wanted."""

    __slots__ = ("_most", "_points", "stride")

    def __init__(self, max_points: int) -> None:
        self.stride = 1
        self._most = max(1, max_points)
        self._points: list[tuple[int, State]] = []

    def add(self, step: int, ticks: int, state: State) -> None:
        """Note the state in a step, if it is one of those that are kept. `ticks` is when the step ends."""
        if step % self.stride:
            return
        self._points.append((ticks, state))
        if len(self._points) >= 2 * self._most:
            self._points = self._points[::2]
            self.stride *= 2

    def series(self) -> Series:
        """What was kept."""
        return _series(self._points)

    @staticmethod
    def together(logs: list[SeriesLog], max_points: int) -> Series:
        """The sum over replicas at every point of any of them."""
        if len(logs) == 1:
            return logs[0].series()
        states = [State(0, 0, 0, 0, 0, 0) for _ in logs]
        points: list[tuple[int, State]] = []
        tagged = ([(ticks, place, state) for ticks, state in log._points] for place, log in enumerate(logs))
        for ticks, place, state in merge(*tagged, key=lambda point: point[:2]):
            states[place] = state
            points.append((ticks, State(*map(sum, zip(*states, strict=True)))))
        return _series(points[:: -(-len(points) // max(1, 2 * max_points)) or 1])


def _series(points: list[tuple[int, State]]) -> Series:
    def column(name: str) -> array[int]:
        return array("q", [getattr(state, name) for _, state in points])

    return Series(
        time_s=array("d", [ticks / TICKS_PER_S for ticks, _ in points]),
        used_blocks=column("used_blocks"),
        cached_blocks=column("cached_blocks"),
        tokens=column("tokens"),
        running=column("running"),
        waiting=column("waiting"),
        preemptions=column("preemptions"),
    )
