"""The Pareto front over cost, throughput, latency, headroom and quality risk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from memplan.records import dataclass

_Plan = TypeVar("_Plan")

# Differences that the speed model cannot tell apart: a plan that gains no more than this on any axis adds nothing.
# The model's own 90 % error is several times as large (docs/speed-model.md).
TOLERANCE = 0.05
_QUALITY_STEP = 0.003


@dataclass(frozen=True, slots=True)
class Point:
    """Where a plan stands on the five axes; less is better on every one, so rates and room are negated.

    `cost` is US dollars per hour, or bytes of GPU memory where a price is missing.
    """

    cost: float
    throughput: float
    latency: float
    headroom: float
    quality: float

    def axes(self) -> tuple[float, ...]:
        return self.cost, self.throughput, self.latency, self.headroom, self.quality


def dominates(one: Point, other: Point, tolerance: float = 0.0) -> bool:
    """Whether `one` is as good as `other` on every axis, or worse by no more than the tolerance, a part of the value.

    Equal points dominate each other.
    """
    more, less = 1 + tolerance, 1 - tolerance
    return (
        one.cost <= other.cost * more
        and one.throughput <= other.throughput * less
        and one.latency <= other.latency * more
        and one.quality <= other.quality + (_QUALITY_STEP if tolerance else 0.0)
        and one.headroom <= other.headroom * less
    )


def front(plans: Iterable[_Plan], point: Callable[[_Plan], Point], tolerance: float = 0.0) -> list[_Plan]:
    """Return the plans that no plan before them, and no other strictly, dominates; in their order."""
    kept: list[tuple[_Plan, Point]] = []
    for plan in plans:
        here = point(plan)
        if not is_dominated(here, [other for _, other in kept], tolerance):
            kept.append((plan, here))
    return [plan for plan, here in kept if not any(dominates(other, here) for each, other in kept if each is not plan)]


def with_point(points: list[Point], point: Point) -> list[Point]:
    """The points that dominate whatever any of `points` or `point` does: those that none of the others dominates."""
    if is_dominated(point, points):
        return points
    return [*(each for each in points if not dominates(point, each)), point]


def is_dominated(here: Point, others: Sequence[Point], tolerance: float = 0.0) -> bool:
    """Whether any of `others` is as good on every axis, within the tolerance."""
    return any(dominates(other, here, tolerance) for other in others)
