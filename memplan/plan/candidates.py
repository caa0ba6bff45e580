"""From a cell to a candidate: how many requests it runs at once, and how fast, before an engine is asked."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, sqrt

from memplan.domain.budget import MemoryBudget
from memplan.domain.plan import Limit, PlanRequest
from memplan.domain.speed import ServingSpeed
from memplan.plan.attempts import Attempt, attempts, next_attempt, room_of, stretch
from memplan.plan.bounds import most_requests
from memplan.plan.cells import Cell
from memplan.plan.goals import FILLS_UP, point_of
from memplan.plan.ledger import Ledger
from memplan.plan.pareto import Point
from memplan.plan.space import LADDER
from memplan.plan.speed import Reads, speed_of, with_pool
from memplan.records import dataclass, replace

_FEW = 8
# Standard deviations of the number in flight that there are places for, where requests arrive on their own: 99 % of
# moments of a Poisson process.
_SURE = 2.33


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
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
        if not self.cell.is_doubted or self.speed.tpot_s <= 0:
            return 0.0
        return self.speed.high_tpot_s / self.speed.tpot_s - 1

    def point(self, request: PlanRequest) -> Point:
        """Where it stands on the axes of the front."""
        return point_of(self, request, self.concurrency)


def first_candidate(cell: Cell, request: PlanRequest, ledger: Ledger, reads: Reads) -> Candidate | None:
    """The candidate of a cell at the batch that its goal wants and its limits allow; None when there is none.

    More requests at once never come sooner, each of them, nor later all together: so limits on waiting bound the batch
    from above, a rate bounds it from below, and both are found by halving.
    """
    room = most_requests(cell.stored.weights_bytes, cell.request_bytes, cell.gpu, cell.layout, cell.offload_bytes)
    wanted = _batches(request)
    held = [batch for batch in wanted if _full(cell, batch) <= room]
    if not held:
        have = f"at most {int(room * stretch(cell.engine, request.traffic)):,} requests have room beside the weights"
        ledger.rule_out("memory", cell.region, f"{have}, {wanted[0]:,} asked for")
        return None
    made = with_pool(cell, request, reads)
    find = _least if request.traffic.request_per_s is not None else _largest
    chosen = find(made, held, room, request) if made is not None else None
    if chosen is None:
        ledger.rule_out("servable", cell.region, "the bandwidth of the GPU is not known")
        return None
    missed = missed_limit(chosen.speed, request)
    if missed is not None:
        ledger.rule_out(missed[0], cell.region, missed[1])
        return None
    return chosen


def _full(cell: Cell, concurrency: int) -> int:
    return cell.fullness.full_requests(concurrency, cell.layout.data)


def _batches(request: PlanRequest) -> tuple[int, ...]:
    """How many requests may run at once, rising."""
    if request.traffic.concurrency is not None:
        return (request.traffic.concurrency,)
    if request.traffic.request_per_s is not None or request.goal in FILLS_UP:
        return LADDER
    return (1,)


def _largest(cell: Cell, batches: Sequence[int], room: float, request: PlanRequest) -> Candidate | None:
    """The candidate of the largest batch that keeps the limits; where none does, that of the smallest."""
    best = candidate(cell, batches[-1], room, request)
    if best is None or len(batches) == 1 or missed_limit(best.speed, request) is None:
        return best
    low, high = 0, len(batches) - 1
    best = candidate(cell, batches[low], room, request)
    while best is not None and high - low > 1 and missed_limit(best.speed, request) is None:
        middle = (low + high) // 2
        between = candidate(cell, batches[middle], room, request)
        if between is None or missed_limit(between.speed, request) is not None:
            high = middle
        else:
            low, best = middle, between
    return best


def _least(cell: Cell, batches: Sequence[int], room: float, request: PlanRequest) -> Candidate | None:
    """The candidate with places for all but 1 in 100 moments of a load that arrives on its own at the rate.

    Little's law: with the smallest batch that keeps up, that many are in flight on average. Where no batch keeps up,
    the candidate of the largest.
    """
    rate = request.traffic.request_per_s or 0.0
    most = batches[-1]
    best, alone = candidate(cell, most, room, request), candidate(cell, 1, room, request)
    if best is None or alone is None or best.speed.request_per_s < rate:
        return best
    low, high = min(most - 1, int(rate * alone.latency_s)), most  # nobody is served sooner than alone
    tried = low + 1 + low // 4
    while high - low > 1 + low // 16:
        between = candidate(cell, min(tried, high - 1), room, request)
        if between is None or between.speed.request_per_s < rate:
            low = min(tried, high - 1)
            tried = 2 * low if high == most else (low + high) // 2
        else:
            high = min(tried, high - 1)
            tried = (low + high) // 2
    places = min(most, ceil(high + _SURE * sqrt(high)))
    return candidate(cell, places, room, request)


def candidate(
    cell: Cell, concurrency: int, room: float, request: PlanRequest, attempt: Attempt | None = None
) -> Candidate | None:
    """A cell at a batch; `room` counts requests of the longest length. None where it has no speed."""
    attempt = attempt or attempts(cell)[0]
    speed = speed_at(cell, concurrency, attempt, request)
    if speed is None:
        return None
    traffic = request.traffic
    return Candidate(
        cell=cell,
        concurrency=concurrency,
        speed=speed,
        output_tokens_per_s=speed.decode_tokens_per_s,
        latency_s=speed.ttft_s + (traffic.output_tokens - 1) * speed.tpot_s,
        room=room * stretch(cell.engine, traffic),
        attempt=attempt,
    )


def speed_at(
    cell: Cell, concurrency: int, attempt: Attempt, request: PlanRequest, *, with_working: bool = False
) -> ServingSpeed | None:
    """The speed of a cell with the steps of an attempt."""
    steps = attempt.batched_tokens or request.settings.max_num_batched_tokens
    return speed_of(cell, concurrency, request, batched_tokens=steps, with_working=with_working)


def missed_limit(speed: ServingSpeed, request: PlanRequest) -> tuple[Limit, str] | None:
    """The first limit on speed that is not kept. The first token of a long prompt counts where lengths are spread."""
    limits, rate = request.limits, request.traffic.request_per_s
    if limits.max_ttft_s is not None and speed.long_ttft_s > limits.max_ttft_s:
        return "ttft", f"the first token takes {speed.long_ttft_s:.3g} s, {limits.max_ttft_s:.3g} s allowed"
    if limits.max_tpot_s is not None and speed.tpot_s > limits.max_tpot_s:
        return "tpot", f"a token takes {speed.tpot_s * 1e3:.3g} ms, {limits.max_tpot_s * 1e3:.3g} ms allowed"
    if rate is not None and speed.request_per_s < rate:
        return "rate", f"{speed.request_per_s:.3g} requests a second, {rate:.3g} asked for"
    return None


def retried(tried: Candidate, budget: MemoryBudget | None, request: PlanRequest) -> Candidate | None:
    """What may fit where a candidate does not: smaller steps or a larger part of the GPU, else fewer requests."""
    if budget is None:
        return None
    may_shrink = not request.demand_is_fixed and request.goal in FILLS_UP and tried.concurrency > 1
    another = None
    if not may_shrink or tried.concurrency <= _FEW:  # of many requests, some fewer cost less than a smaller step
        another = next_attempt(tried.cell, tried.attempt, budget)
    if another is not None:
        slower = candidate(tried.cell, tried.concurrency, 0.0, request, another)
        if slower is not None and missed_limit(slower.speed, request) is None:
            return replace(slower, room=tried.room, shrunk=tried.shrunk)
    if not may_shrink:
        return None
    room = room_of(budget, tried.concurrency)
    cut = 1 - 2.0**tried.shrunk / 32
    held = floor(room * (stretch(tried.cell.engine, request.traffic) if request.traffic.is_spread else 1.0))
    fewer = min(held, int(tried.concurrency * cut), tried.concurrency - 1)
    smaller = candidate(tried.cell, fewer, room, request) if fewer >= 1 else None
    return replace(smaller, shrunk=min(4, tried.shrunk + 1)) if smaller else None
