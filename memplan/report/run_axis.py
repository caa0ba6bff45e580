"""The axis of a run: phases side by side, as wide as their parts of the allocations and frees, but none too narrow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from memplan.domain.timeline import Phase, Sample
from memplan.records import dataclass

_LEAST_SHARE = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """One phase on the axis, which goes from 0 to 1."""

    phase: Phase
    start: float
    end: float


class RunAxis:
    """Places on the axis for the steps of a run, whose phases are in `stretches`."""

    __slots__ = ("_firsts", "_lasts", "stretches")

    def __init__(self, samples: Sequence[Sample]) -> None:
        starts = [
            number for number, sample in enumerate(samples) if number == 0 or sample.phase != samples[number - 1].phase
        ]
        ends = [*starts[1:], len(samples) - 1]
        self._firsts = [samples[start].step for start in starts]
        self._lasts = [samples[end].step for end in ends]
        lengths = [max(1, last - first) for first, last in zip(self._firsts, self._lasts, strict=True)]
        least = min(_LEAST_SHARE, 0.6 / len(starts))
        shares = [least + (1 - least * len(starts)) * length / sum(lengths) for length in lengths]
        self.stretches: list[Stretch] = []
        at = 0.0
        for start, share in zip(starts, shares, strict=True):
            self.stretches.append(Stretch(phase=samples[start].phase, start=at, end=at + share))
            at += share

    def __call__(self, step: int) -> float:
        """The place of a step."""
        number = max(0, bisect_right(self._firsts, step) - 1)
        stretch, first, last = self.stretches[number], self._firsts[number], self._lasts[number]
        part = min(1.0, max(0.0, (step - first) / max(1, last - first)))
        return stretch.start + part * (stretch.end - stretch.start)
