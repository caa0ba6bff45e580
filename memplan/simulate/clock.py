"""How long a step takes, in whole picoseconds: sums over many steps are the same in whatever order they are added.

Every kind of step times comes down to straight lines: between two points, one more token of context costs the same
number of picoseconds. That is what lets a stretch of equal decode steps be added at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from memplan.domain.simulation import EqualSteps, MeasuredSteps, ModelledSteps, StepTimes
from memplan.errors import UsageError

TICKS_PER_S = 10**12
_ENDLESS = 1 << 62


class Clock:
    """Step times of one replica, in ticks."""

    def __init__(self, steps: StepTimes) -> None:
        self._steps = steps
        self._curves: dict[int, Curve] = {}
        self._bases: dict[int, int] = {}
        self.request_ticks = 0
        self.counts_steps = isinstance(steps, EqualSteps)
        self._prompt: Curve | None = None
        if isinstance(steps, ModelledSteps):
            self._prompt = Curve(steps.positions, steps.prompt_s)
            self._pass = Curve(steps.tokens, steps.pass_s)
            self._decode = Curve(steps.positions, steps.decode_s)
            self._sequence = to_ticks(steps.sequence_s)
            self.request_ticks = to_ticks(steps.request_s)
        if isinstance(steps, MeasuredSteps):
            self._measured = _Measured(steps)

    def line(self, decodes: int, context: int) -> tuple[int, int, int]:
        """The time of a step that only decodes: (a, b, steps): a + b x context for as many steps from here on, the
        context of all growing by `decodes` a step.
        """
        steps = self._steps
        if isinstance(steps, EqualSteps):
            return to_ticks(steps.step_s), 0, _ENDLESS
        mean = context // decodes
        if isinstance(steps, ModelledSteps):
            start, slope, left = self._decode.line(mean)
            return self._base(decodes) + decodes * (self._sequence + start), slope, left
        curve = self._curves.get(decodes)
        if curve is None:
            curve = self._curves[decodes] = self._measured.decode_curve(decodes)
        start, slope, left = curve.line(mean)
        # the curve is of the whole batch's time over the mean: a slope per token of one sequence
        return start, slope // decodes, left

    def step(self, decodes: int, context: int, chunks: Sequence[tuple[int, int]]) -> int:
        """The time of one step; none where there is nothing to compute, unless steps are counted."""
        if not chunks and not decodes and not self.counts_steps:
            return 0
        if not chunks:
            first, slope, _ = self.line(decodes, context)
            return first + slope * context
        steps = self._steps
        if isinstance(steps, EqualSteps):
            return to_ticks(steps.step_s)
        tokens = sum(end - start for start, end in chunks)
        if isinstance(steps, ModelledSteps):
            assert self._prompt is not None
            ticks = self._base(decodes + tokens) + self._sequence * (decodes + len(chunks))
            if decodes:
                start, slope, _ = self._decode.line(context // decodes)
                ticks += decodes * start + slope * context
            return ticks + sum(self._prompt.at(end) - self._prompt.at(start) for start, end in chunks)
        ticks = self._measured.prompt.at(tokens)
        if decodes:
            first, slope, _ = self.line(decodes, context)
            ticks += max(0, first + slope * context - self._measured.least)
        return ticks

    def _base(self, tokens: int) -> int:
        """Everything but attention, by the tokens of a step."""
        ticks = self._bases.get(tokens)
        if ticks is None:
            ticks = self._bases[tokens] = self._pass.at(tokens)
        return ticks


class Curve:
    """Straight lines between points, in ticks over whole numbers; the first and the last line go on."""

    __slots__ = ("_at", "_slopes", "_ticks")

    def __init__(self, places: Sequence[float], seconds: Sequence[float]) -> None:
        if len(places) != len(seconds) or not places or any(a >= b for a, b in pairwise(places)):
            raise UsageError(
                "step times without rising points", hint="give one time for each of a rising row of points"
            )
        self._at = [round(place) for place in places]
        self._ticks = [to_ticks(value) for value in seconds]
        self._slopes = [
            (self._ticks[place + 1] - self._ticks[place]) // max(1, self._at[place + 1] - self._at[place])
            for place in range(len(self._at) - 1)
        ] or [0]

    def line(self, place: int) -> tuple[int, int, int]:
        """(a, b, count): a + b x place here and at the `count - 1` places after it."""
        segment = min(max(bisect_right(self._at, place) - 1, 0), len(self._slopes) - 1)
        slope = self._slopes[segment]
        left = self._at[segment + 1] - place if segment + 1 < len(self._slopes) else _ENDLESS
        return self._ticks[segment] - slope * self._at[segment], slope, left

    def at(self, place: int) -> int:
        """The ticks at one place."""
        start, slope, _ = self.line(place)
        return max(0, start + slope * place)


class _Measured:
    """Measured points: a curve over the context for each measured batch, lines between the batches."""

    def __init__(self, steps: MeasuredSteps) -> None:
        rows: dict[float, dict[float, float]] = {}
        for batch, context, seconds in steps.decode_points:
            if min(batch, seconds) <= 0 or context < 0:
                raise UsageError(
                    f"not a measured step: {batch:g}, {context:g}, {seconds:g}", hint="BATCH,CONTEXT,SECONDS"
                )
            rows.setdefault(batch, {})[context] = seconds
        if not rows or not steps.prefill_points:
            raise UsageError("no measured step", hint="give at least one decode step and one step of a prompt")
        self._batches = sorted(rows)
        self._contexts = sorted({context for row in rows.values() for context in row})
        self._seconds = [[_between(row, context) for context in self._contexts] for _, row in sorted(rows.items())]
        self.least = to_ticks(min(min(row) for row in self._seconds))
        prompts = dict(steps.prefill_points)
        places = sorted(prompts)
        if len(places) == 1:  # a straight line from the smallest decode step
            places, prompts = [1.0, *places], {1.0: min(self.least / TICKS_PER_S, prompts[places[0]]), **prompts}
        self.prompt = Curve(places, [prompts[place] for place in places])

    def decode_curve(self, decodes: int) -> Curve:
        """The time of a step of so many sequences over their mean context."""
        columns = zip(*self._seconds, strict=True)
        seconds = [_between(dict(zip(self._batches, column, strict=True)), decodes) for column in columns]
        return Curve(self._contexts, list(accumulate(seconds, max)))  # noise that falls would go below zero further on


def _between(points: dict[float, float], place: float) -> float:
    """The value of lines through points; beyond the last one its line goes on, before the first one nothing falls."""
    places = sorted(points)
    if len(places) == 1 or place <= places[0]:
        return points[places[0]]
    upper = min(max(1, bisect_right(places, place)), len(places) - 1)
    low, high = places[upper - 1], places[upper]
    return points[low] + (points[high] - points[low]) * (place - low) / (high - low)


def to_ticks(seconds: float) -> int:
    return round(seconds * TICKS_PER_S)
