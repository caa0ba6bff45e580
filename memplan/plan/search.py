"""The search: cells become drafts with a speed, drafts become plans with a budget, best first.

What is cheap decides before what is dear. A cell's speed is a formula; the engine's budget is asked only for drafts
that no plan found so far beats on every axis, with the draft's room taken at its upper bound. So the winner and the
front are those of the whole space.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from memplan.domain.budget import MemoryBudget
from memplan.domain.model import ModelSpec
from memplan.domain.plan import Limit, PlanAnswer, PlanRequest, ServingPlan
from memplan.domain.speed import ServingSpeed
from memplan.plan.bounds import most_requests
from memplan.plan.cells import Cell, cells
from memplan.plan.estimates import Attempt, attempts, estimate, headroom_bytes, next_attempt, room_of, stretch
from memplan.plan.goals import FILLS_UP, point_of, score
from memplan.plan.ledger import Ledger
from memplan.plan.nearest import nearest_plans
from memplan.plan.pareto import TOLERANCE, Point, front, is_dominated
from memplan.plan.space import LADDER
from memplan.plan.speed import speed_of
from memplan.plan.words import loses_by, wins_by
from memplan.records import dataclass, replace

_FEW = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A cell with a batch and its speed; `room` is an upper bound until the engine was asked, `shrunk` how often the
    batch was lowered since.
    """

    cell: Cell
    concurrency: int
    speed: ServingSpeed
    output_tokens_per_s: float
    latency_s: float
    room: float
    attempt: Attempt
    shrunk: int = 0

    @property
    def cost(self) -> float:
        usd = self.cell.usd_per_hour
        return usd if usd is not None else self.cell.num_gpus * self.cell.gpu.memory_bytes / 1e9

    @property
    def rise(self) -> float:
        return self.cell.quality.perplexity_increase

    @property
    def doubt(self) -> float:
        if self.cell.is_first_choice or self.speed.tpot_s <= 0:
            return 0.0
        return self.speed.high_tpot_s / self.speed.tpot_s - 1


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
    drafts = [draft for cell in cells(spec, request, ledger) if (draft := _first_draft(cell, request, ledger))]
    found = _verify(drafts, request, ledger)
    ranked = sorted(found, key=lambda pair: score(pair[1], request))
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
    drafts = [draft for cell in cells(spec, request, ledger) if (draft := _first_draft(cell, request, ledger))]
    return next((plan for plan, _ in _verify(drafts, request, ledger, most=1)), None)


def _verify(
    drafts: list[Draft], request: PlanRequest, ledger: Ledger, most: int | None = None
) -> list[tuple[ServingPlan, Point]]:
    """Ask the engines, the most promising draft first, and keep what fits; stop at `most` plans.

    A draft is left for being nearly as good as a plan only when it cannot become the winner.
    """
    heap = [(score(_point(draft, request), request), number, draft) for number, draft in enumerate(drafts)]
    heapify(heap)
    found: list[tuple[ServingPlan, Point]] = []
    points: list[Point] = []
    number, best = len(heap), None
    while heap and (most is None or len(found) < most):
        hoped, _, draft = heappop(heap)
        if best is not None and hoped >= best and is_dominated(_point(draft, request), points, TOLERANCE):
            reason = "another plan is at least as good on every axis"
            ledger.rule_out("dominated", draft.cell.region, reason)
            continue
        ledger.estimated += 1
        budget, refusal = estimate(draft.cell, draft.concurrency, draft.attempt, request)
        if budget is not None and budget.verdict == "fits":
            plan = _plan(draft, budget, request)
            longer = stretch(draft.cell.engine, request.traffic)
            exact = replace(draft, room=longer * room_of(budget, draft.concurrency))
            points.append(_point(exact, request))
            found.append((plan, points[-1]))
            reached = score(points[-1], request)
            best = reached if best is None else min(best, reached)
            continue
        again = _retry(draft, budget, request)
        if again is None:
            limit: Limit = "memory" if budget is not None else "shape"
            ledger.rule_out(limit, draft.cell.region, _why(budget) if budget is not None else refusal)
            continue
        number += 1
        heappush(heap, (score(_point(again, request), request), number, again))
    return found


def _first_draft(cell: Cell, request: PlanRequest, ledger: Ledger) -> Draft | None:
    """The draft of a cell at the batch that its goal wants and its limits allow; None when there is none.

    More requests at once never come sooner, each of them, nor later all together: so limits on waiting bound the batch
    from above, a rate bounds it from below, and both are found by halving.
    """
    room = most_requests(
        cell.stored.weights_bytes, cell.request_bytes, cell.gpu, cell.layout, request.settings.weight_offload_bytes
    )
    batches = _batches(request)
    if batches[0] > room:
        have = f"at most {int(room):,} requests have room beside the weights"
        ledger.rule_out("memory", cell.region, f"{have}, {batches[0]:,} asked for")
        return None
    drafts = [batch for batch in batches if batch <= room]
    if request.traffic.request_per_s is not None:
        chosen = _least(cell, drafts, room, request)
    else:
        chosen = _largest(cell, drafts, room, request)
    if chosen is None:
        ledger.rule_out("servable", cell.region, "the bandwidth of the GPU is not known")
        return None
    missed = _missed(chosen.speed, request)
    if missed is not None:
        ledger.rule_out(missed[0], cell.region, missed[1])
        return None
    return chosen


def _largest(cell: Cell, batches: list[int], room: float, request: PlanRequest) -> Draft | None:
    """The draft of the largest batch that keeps the limits; where none does, that of the smallest."""
    best = _draft(cell, batches[-1], room, request)
    if best is None or len(batches) == 1 or _missed(best.speed, request) is None:
        return best
    low, high = 0, len(batches) - 1
    best = _draft(cell, batches[low], room, request)
    while best is not None and high - low > 1 and _missed(best.speed, request) is None:
        middle = (low + high) // 2
        draft = _draft(cell, batches[middle], room, request)
        if draft is None or _missed(draft.speed, request) is not None:
            high = middle
        else:
            low, best = middle, draft
    return best


def _least(cell: Cell, batches: list[int], room: float, request: PlanRequest) -> Draft | None:
    """The draft of the smallest batch that keeps up with the rate; where none does, that of the largest."""
    rate = request.traffic.request_per_s or 0.0
    best = _draft(cell, batches[-1], room, request)
    if best is None or best.speed.request_per_s < rate:
        return best
    low, high = -1, len(batches) - 1
    while high - low > 1:
        middle = (low + high) // 2
        draft = _draft(cell, batches[middle], room, request)
        if draft is None or draft.speed.request_per_s < rate:
            low = middle
        else:
            high, best = middle, draft
    return best


def _batches(request: PlanRequest) -> tuple[int, ...]:
    """How many requests may run at once, rising."""
    if request.traffic.concurrency is not None:
        return (request.traffic.concurrency,)
    if request.traffic.request_per_s is not None or request.goal in FILLS_UP:
        return LADDER
    return (1,)


def _draft(
    cell: Cell, concurrency: int, room: float, request: PlanRequest, attempt: Attempt | None = None
) -> Draft | None:
    attempt = attempt or attempts(cell)[0]
    speed = _speed(cell, concurrency, attempt, request)
    if speed is None:
        return None
    traffic = request.traffic
    return Draft(
        cell=cell,
        concurrency=concurrency,
        speed=speed,
        output_tokens_per_s=speed.decode_tokens_per_s,
        latency_s=speed.ttft_s + (traffic.output_tokens - 1) * speed.tpot_s,
        room=room * stretch(cell.engine, traffic),
        attempt=attempt,
    )


def _speed(
    cell: Cell, concurrency: int, attempt: Attempt, request: PlanRequest, *, with_working: bool = False
) -> ServingSpeed | None:
    return speed_of(
        cell,
        request.traffic,
        concurrency,
        offload_bytes=request.settings.weight_offload_bytes,
        batched_tokens=attempt.batched_tokens or request.settings.max_num_batched_tokens,
        with_working=with_working,
    )


def _missed(speed: ServingSpeed, request: PlanRequest) -> tuple[Limit, str] | None:
    """The first limit on speed that is not kept."""
    limits, rate = request.limits, request.traffic.request_per_s
    if limits.max_ttft_s is not None and speed.ttft_s > limits.max_ttft_s:
        return "ttft", f"the first token takes {speed.ttft_s:.3g} s, {limits.max_ttft_s:.3g} s allowed"
    if limits.max_tpot_s is not None and speed.tpot_s > limits.max_tpot_s:
        return "tpot", f"a token takes {speed.tpot_s * 1e3:.3g} ms, {limits.max_tpot_s * 1e3:.3g} ms allowed"
    if rate is not None and speed.request_per_s < rate:
        return "rate", f"{speed.request_per_s:.3g} requests a second, {rate:.3g} asked for"
    return None


def _retry(draft: Draft, budget: MemoryBudget | None, request: PlanRequest) -> Draft | None:
    """A draft that may fit where this one does not: smaller steps or a larger part of the GPU, else fewer requests."""
    if budget is None:
        return None
    may_shrink = not request.demand_is_fixed and request.goal in FILLS_UP and draft.concurrency > 1
    another = None
    if not may_shrink or draft.concurrency <= _FEW:  # of many requests, some fewer cost less than a smaller step
        another = next_attempt(draft.cell, draft.attempt, budget)
    if another is not None:
        slower = _draft(draft.cell, draft.concurrency, 0.0, request, another)
        if slower is not None and _missed(slower.speed, request) is None:
            return replace(slower, room=draft.room, shrunk=draft.shrunk)
    if not may_shrink:
        return None
    room = room_of(budget, draft.concurrency)
    cut = 1 - 2.0**draft.shrunk / 32
    fewer = min(int(room), int(draft.concurrency * cut), draft.concurrency - 1)
    smaller = _draft(draft.cell, fewer, room, request) if fewer >= 1 else None
    return replace(smaller, shrunk=min(4, draft.shrunk + 1)) if smaller else None


def _why(budget: MemoryBudget) -> str:
    if budget.reasons:
        return budget.reasons[0]
    return "it does not fit" if budget.verdict == "does_not_fit" else "too close to call"


def _point(draft: Draft, request: PlanRequest) -> Point:
    return point_of(draft, request, draft.concurrency)


def _plan(draft: Draft, budget: MemoryBudget, request: PlanRequest) -> ServingPlan:
    cell = draft.cell
    usd, rate = cell.usd_per_hour, draft.output_tokens_per_s
    return ServingPlan(
        engine=cell.engine,
        version=budget.engine_version,
        gpu=cell.gpu,
        num_gpus=cell.num_gpus,
        layout=cell.layout,
        scheme=cell.stored.scheme,
        weights_scheme=budget.weights_scheme,
        kv_dtype=cell.kv_dtype,
        concurrency=draft.concurrency,
        settings=draft.attempt.settings(cell, draft.concurrency, request),
        budget=budget,
        speed=_speed(cell, draft.concurrency, draft.attempt, request, with_working=True) or draft.speed,
        quality=cell.quality,
        kernel=cell.support.kernel,
        headroom_bytes=headroom_bytes(budget),
        output_tokens_per_s=rate,
        usd_per_hour=usd,
        usd_per_million_tokens=usd / (rate * 3600) * 1e6 if usd is not None and rate > 0 else None,
    )
