"""The Pareto front over cost, throughput, latency, headroom and quality risk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from memplan.records import dataclass

_Plan = TypeVar("_Plan")


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


def dominates(one: Point, other: Point) -> bool:
    """Whether `one` is at least as good as `other` on every axis. Equal points dominate each other."""
    return (
        one.cost <= other.cost
        and one.quality <= other.quality
        and one.throughput <= other.throughput
        and one.latency <= other.latency
        and one.headroom <= other.headroom
    )


def front(plans: Iterable[_Plan], point: Callable[[_Plan], Point]) -> list[_Plan]:
    """Return the plans that no other dominates, in their order; of equal ones the first."""
    kept: list[tuple[_Plan, Point]] = []
    for plan in plans:
        here = point(plan)
        if any(dominates(other, here) for _, other in kept):
            continue
        kept = [(each, other) for each, other in kept if not dominates(here, other)]
        kept.append((plan, here))
    return [plan for plan, _ in kept]


def is_dominated(here: Point, others: Sequence[Point]) -> bool:
    """Whether any of `others` is at least as good on every axis."""
    return any(dominates(other, here) for other in others)
