"""What a goal wants: the order of plans, how many requests to run at once, and what tells two plans apart in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
# What counts as equal of the figure that a goal is about, and of speeds where they only break ties: much less than the
# speed model's error.
TIE = 0.02
NEAR = 0.1
# Room for fewer requests than this many times the load is hardly any.
_CRAMPED = 1.1


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
    """The order in which candidates are tried: less is better. Better on every axis never scores worse."""
    cost, throughput, latency, headroom, quality = point.axes()
    level = _level(point, request)
    rate, wait = _step(-throughput), _step(latency)
    first = _first(point, request)
    if request.goal == "cost":
        return first, level, -rate, headroom, wait, latency, quality
    if request.goal in ("throughput", "latency"):
        return first, cost, level, headroom, -rate, wait, throughput + latency, quality
    if request.goal == "single-gpu":
        return first, wait, -rate, headroom, cost, latency, quality
    if request.goal == "long-context":
        return first, level, -rate, headroom, wait, latency, quality
    return first, level, -rate, wait, cost, latency, quality


def winner_of(points: Sequence[Point], request: PlanRequest) -> int:
    """The place of the best of several plans.

    What differs by less than a criterion's tolerance counts as equal, and the next criterion decides. So of two plans
    within 2 % of each other in what the goal wants, one with hardly any room left does not win.
    """
    left = list(range(len(points)))
    for measure, tolerance in _criteria(request):
        measured = {place: measure(points[place]) for place in left}
        best = min(measured.values())
        left = [place for place in left if measured[place] <= best + abs(best) * tolerance]
    return left[0]


def _criteria(request: PlanRequest) -> tuple[tuple[Callable[[Point], float], float], ...]:
    """What a goal compares, in turn: a figure of which less is better, and the part of it that counts as equal."""

    def first(point: Point) -> float:
        return _first(point, request)

    def level(point: Point) -> float:
        return _level(point, request)

    wanted = (first, 0.0 if request.goal == "single-gpu" else TIE)
    room, risk, rate, wait = (_is_cramped, 0.0), (level, 0.0), (_throughput, NEAR), (_latency, NEAR)
    last = ((_perplexity, TIE), (_headroom, 0.0), (_throughput, 0.0), (_latency, 0.0))
    if request.goal in ("throughput", "latency"):
        return wanted, (_cost, TIE), room, risk, rate, wait, *last
    if request.goal == "single-gpu":
        return wanted, room, wait, rate, (_cost, TIE), *last
    if request.goal == "multi-tenant":
        return wanted, risk, rate, wait, (_cost, TIE), *last
    return wanted, room, risk, (_cost, TIE), rate, wait, *last


def _first(point: Point, request: PlanRequest) -> float:
    """What the goal wants first."""
    if request.goal == "throughput":
        return point.throughput
    if request.goal == "latency":
        return point.latency
    if request.goal == "single-gpu":
        return _level(point, request)
    if request.goal == "multi-tenant":
        return point.headroom / max(1e-9, point.cost)
    if request.goal == "long-context" or request.demand_is_fixed:
        return point.cost
    return point.cost / max(1e-9, -point.throughput)


def _level(point: Point, request: PlanRequest) -> float:
    steps = _FINE_STEPS if request.goal == "single-gpu" else _STEPS
    return float(sum(point.quality >= step for step in steps))


def _is_cramped(point: Point) -> float:
    return float(-point.headroom < _CRAMPED)


def _throughput(point: Point) -> float:
    return point.throughput


def _latency(point: Point) -> float:
    return point.latency


def _perplexity(point: Point) -> float:
    return 1 + point.quality


def _headroom(point: Point) -> float:
    return point.headroom


def _cost(point: Point) -> float:
    return point.cost


def _step(value: float) -> int:
    """Values within about a tenth of one another, where they only break ties."""
    return floor(log(max(value, 1e-9)) / log(1.1))
