"""What a goal wants: the order of plans, how many requests to run at once, and what tells two plans apart in words."""

from __future__ import annotations

from math import floor, log
from typing import Protocol

from memplan.domain.plan import Goal, PlanRequest
from memplan.plan.pareto import Point

# Goals that want the largest batch when the load is not given; the others then serve one request at a time.
FILLS_UP: frozenset[Goal] = frozenset({"cost", "throughput", "multi-tenant"})
# Goals for which room beyond twice the asked load still counts.
WANTS_ROOM: frozenset[Goal] = frozenset({"multi-tenant"})
_ENOUGH_ROOM = 2.0
# Where rises of perplexity begin to differ for a goal: single-gpu looks at the levels of catalog/quality.py, the others
# take up to 2 % for equal.
_FINE_STEPS = (0.0005, 0.005, 0.02, 0.06)
_STEPS = (0.02, 0.06)


class Measured(Protocol):
    """What a goal looks at: a draft with bounds, or a plan with its budget."""

    @property
    def cost(self) -> float: ...
    @property
    def output_tokens_per_s(self) -> float: ...
    @property
    def latency_s(self) -> float: ...
    @property
    def room(self) -> float: ...
    @property
    def rise(self) -> float: ...
    @property
    def doubt(self) -> float: ...


def point_of(plan: Measured, request: PlanRequest, concurrency: int) -> Point:
    """Where a plan stands. Room counts in multiples of the load, up to twice it for goals that need no more.

    `doubt` is a handicap in speed: the part by which an engine that is not the first choice must be faster, because
    the speed model cannot tell engines apart by less.
    """
    headroom = plan.room / max(1, concurrency)
    if request.goal in WANTS_ROOM:
        headroom = plan.room
    elif headroom > _ENOUGH_ROOM:
        headroom = _ENOUGH_ROOM
    return Point(
        cost=plan.cost,
        throughput=-plan.output_tokens_per_s / (1 + plan.doubt),
        latency=plan.latency_s * (1 + plan.doubt),
        headroom=-round(headroom, 3),
        quality=round(plan.rise, 5),
    )


def score(point: Point, request: PlanRequest) -> tuple[float, ...]:
    """The order of a goal: less is better. Better on every axis never scores worse."""
    cost, throughput, latency, headroom, quality = point.axes()
    level = float(sum(quality >= step for step in (_FINE_STEPS if request.goal == "single-gpu" else _STEPS)))
    rate, wait = _step(-throughput), _step(latency)
    if request.goal == "cost":
        paid = cost if request.demand_is_fixed else cost / max(1e-9, -throughput)
        return paid, level, -rate, headroom, wait, latency, quality
    if request.goal == "throughput":
        return throughput, cost, level, headroom, wait, latency, quality
    if request.goal == "latency":
        return latency, cost, level, headroom, -rate, throughput, quality
    if request.goal == "single-gpu":
        return level, wait, -rate, headroom, cost, latency, quality
    if request.goal == "long-context":
        return cost, level, -rate, headroom, wait, latency, quality
    return headroom / max(1e-9, cost), level, -rate, wait, cost, latency, quality


def _step(value: float) -> int:
    """Values within about a tenth of one another, where they only break ties."""
    return floor(log(max(value, 1e-9)) / log(1.1))
