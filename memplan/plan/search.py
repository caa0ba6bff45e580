"""The search: cells become candidates with a speed, candidates become plans with a budget, best first.

What is cheap decides before what is dear. A cell's speed is a formula; the engine's budget is asked only for candidates
that no plan found so far beats on every axis, with their room taken at its upper bound. So the winner and the front are
those of the whole space.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from memplan.budget.pools import busy_fraction
from memplan.domain.budget import MemoryBudget
from memplan.domain.model import ModelSpec
from memplan.domain.plan import Limit, PlanAnswer, PlanRequest, PrefillPool, ServingPlan
from memplan.domain.serving import ServingSettings
from memplan.plan.attempts import estimate, headroom_bytes, prefill_settings, room_of, stretch
from memplan.plan.candidates import Candidate, first_candidate, retried, speed_at
from memplan.plan.cells import cells
from memplan.plan.goals import score, winner_of
from memplan.plan.ledger import Ledger
from memplan.plan.nearest import nearest_plans
from memplan.plan.pareto import TOLERANCE, Point, front, is_dominated, with_point
from memplan.plan.speed import Reads
from memplan.plan.words import loses_by, wins_by
from memplan.records import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verified:
    """What engines answered for a candidate: settings and budget, and those of its prefill pool, if it has one."""

    settings: ServingSettings
    budget: MemoryBudget
    prefill: tuple[ServingSettings, MemoryBudget] | None = None


def search(spec: ModelSpec, request: PlanRequest, *, with_nearest: bool = True) -> PlanAnswer:
    """Return the best plan for a request, the Pareto front behind it, and what was ruled out and why; without a plan,
    the nearest ones that exist, unless `with_nearest` is false.
    """
    import gc

    was_on = gc.isenabled()
    gc.disable()  # a search makes many small records and no cycles
    try:
        answer = _search(spec, request)
        if answer.front or not with_nearest:
            return answer
        return replace(answer, nearest=nearest_plans(request, lambda other: _first(spec, other)))
    finally:
        if was_on:
            gc.enable()


def _search(spec: ModelSpec, request: PlanRequest) -> PlanAnswer:
    ledger = Ledger()
    found = _verify(_candidates(spec, request, ledger), request, ledger)
    ranked = sorted(found, key=lambda pair: score(pair[1], request))
    if ranked:
        ranked.insert(0, ranked.pop(winner_of([point for _, point in ranked], request)))
    best = front(ranked, lambda pair: pair[1], TOLERANCE)
    plans = [plan for plan, _ in best]
    if plans:
        runner_up = plans[1] if len(plans) > 1 else None
        plans[0] = replace(plans[0], reasons=wins_by(plans[0], runner_up, request))
    return PlanAnswer(
        model_name=spec.name,
        parameters=spec.parameters,
        request=request,
        front=tuple(plans),
        runner_up_loses_by=loses_by(plans[1], plans[0]) if len(plans) > 1 else (),
        rejections=ledger.rejections(),
        considered=ledger.considered,
        estimated=ledger.estimated,
        binding=() if plans else ledger.binding(),
    )


def _first(spec: ModelSpec, request: PlanRequest) -> ServingPlan | None:
    """The first plan that fits, in the order of the goal."""
    ledger = Ledger()
    return next((plan for plan, _ in _verify(_candidates(spec, request, ledger), request, ledger, most=1)), None)


def _candidates(spec: ModelSpec, request: PlanRequest, ledger: Ledger) -> list[Candidate]:
    reads: Reads = {}
    made = (first_candidate(cell, request, ledger, reads) for cell in cells(spec, request, ledger))
    return [candidate for candidate in made if candidate is not None]


def _verify(
    candidates: list[Candidate], request: PlanRequest, ledger: Ledger, most: int | None = None
) -> list[tuple[ServingPlan, Point]]:
    """Ask the engines, the most promising candidate first, and keep what fits; stop at `most` plans.

    A candidate is left for being nearly as good as a plan only when it cannot become the winner.
    """
    heap = [(score(tried.point(request), request), number, tried) for number, tried in enumerate(candidates)]
    heapify(heap)
    found: list[tuple[ServingPlan, Point]] = []
    points: list[Point] = []
    number, best = len(heap), None
    while heap and (most is None or len(found) < most):
        hoped, _, tried = heappop(heap)
        if best is not None and hoped >= best and is_dominated(tried.point(request), points, TOLERANCE):
            reason = "another plan is at least as good on every axis"
            ledger.rule_out("dominated", tried.cell.region, reason)
            continue
        verified, budget, refusal = _asked(tried, request, ledger)
        if verified is not None:
            longer = stretch(tried.cell.engine, request.traffic)
            exact = replace(tried, room=longer * room_of(verified.budget, tried.concurrency))
            point = exact.point(request)
            points = with_point(points, point)
            found.append((_plan(tried, verified, request), point))
            reached = score(point, request)
            best = reached if best is None else min(best, reached)
            continue
        again = retried(tried, budget, request)
        if again is None:
            limit: Limit = "memory" if budget is not None else "shape"
            ledger.rule_out(limit, tried.cell.region, _why(budget) if budget is not None else refusal)
            continue
        number += 1
        heappush(heap, (score(again.point(request), request), number, again))
    return found


def _asked(tried: Candidate, request: PlanRequest, ledger: Ledger) -> tuple[_Verified | None, MemoryBudget | None, str]:
    """What the engine says of a candidate and of its prefill pool: verified, or the budget or refusal it fails at."""
    cell = tried.cell
    ledger.estimated += 1
    settings = tried.attempt.settings(cell, tried.concurrency, request)
    budget, refusal = estimate(cell, settings)
    if budget is None or budget.verdict != "fits":
        return None, budget, refusal
    if cell.prefill is None:
        return _Verified(settings=settings, budget=budget), budget, ""
    ledger.estimated += 1
    reads = prefill_settings(cell, cell.prefill, tried.attempt, request)
    pool, refusal = estimate(cell, reads)
    if pool is None or pool.verdict != "fits":
        return None, pool, refusal
    return _Verified(settings=settings, budget=budget, prefill=(reads, pool)), budget, ""


def _why(budget: MemoryBudget) -> str:
    if budget.reasons:
        return budget.reasons[0]
    return "it does not fit" if budget.verdict == "does_not_fit" else "too close to call"


def _plan(tried: Candidate, verified: _Verified, request: PlanRequest) -> ServingPlan:
    cell = tried.cell
    usd, rate = cell.usd_per_hour, tried.output_tokens_per_s
    return ServingPlan(
        engine=cell.engine,
        version=verified.budget.engine_version,
        gpu=cell.gpu,
        num_gpus=cell.num_gpus,
        layout=cell.layout,
        scheme=cell.stored.scheme,
        weights_scheme=verified.budget.weights_scheme,
        kv_dtype=cell.kv_dtype,
        concurrency=tried.concurrency,
        settings=verified.settings,
        budget=verified.budget,
        speed=speed_at(cell, tried.concurrency, tried.attempt, request, with_working=True) or tried.speed,
        quality=cell.quality,
        kernel=cell.support.kernel,
        headroom_bytes=headroom_bytes(verified.budget),
        output_tokens_per_s=rate,
        usd_per_hour=usd,
        usd_per_million_tokens=usd / (rate * 3600) * 1e6 if usd is not None and rate > 0 else None,
        speculation=cell.speculation,
        prefill=_prefill(tried, verified, request),
    )


def _prefill(tried: Candidate, verified: _Verified, request: PlanRequest) -> PrefillPool | None:
    """The prefill pool of a plan, with what sharing its GPUs would cost every token."""
    cell = tried.cell
    if cell.prefill is None or cell.pool is None or verified.prefill is None:
        return None
    settings, budget = verified.prefill
    others = max(0, -(-tried.concurrency // cell.layout.data) - 1)
    prompt_s = cell.pool.replicas / cell.pool.request_per_s
    return PrefillPool(
        layout=cell.prefill,
        settings=settings,
        budget=budget,
        link=cell.pool.link,
        transfer_s=cell.pool.transfer_s,
        shared_tpot_s=others * prompt_s / max(1, request.traffic.output_tokens - 1),
        busy_fraction=busy_fraction(cell.pool, tried.speed.request_per_s),
    )
