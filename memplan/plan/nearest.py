"""When nothing keeps every limit: the plan that would exist if one limit gave way, and by how much it must.

Every entry is a search of its own, with one limit lifted and the goal that comes nearest to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil, floor

from memplan.domain.lengths import scaled
from memplan.domain.plan import Goal, GpuOffer, Limit, Nearest, PlanRequest, ServingPlan
from memplan.plan.space import OFFLOADS
from memplan.records import dataclass, replace

_MORE_GPUS = (2, 4, 8, 16, 32, 64)
_STEP = 1024

Find = Callable[[PlanRequest], "ServingPlan | None"]
Says = Callable[[ServingPlan], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """A request with one limit lifted, and how to say what the limit would have to become."""

    limit: Limit
    request: PlanRequest
    says: Says


def nearest_plans(request: PlanRequest, find: Find) -> tuple[Nearest, ...]:
    """Return one plan for every limit that is enough to give up alone; else one with all limits lifted."""
    found: list[Nearest] = []
    for relaxation in (*_limits(request), *_hardware(request)):
        plan = find(relaxation.request)
        if plan is not None:
            found.append(Nearest(limit=relaxation.limit, change=relaxation.says(plan), plan=plan))
    fewer = _fewest_given_up(_with_concurrency, request, request.traffic.concurrency or 1, 1, find)
    if fewer is not None:
        found.append(Nearest(limit="memory", change=f"--concurrency {fewer.concurrency}", plan=fewer))
    else:
        shorter = _fewest_given_up(_with_context, request, request.traffic.context_tokens // _STEP, 1, find)
        if shorter is not None:
            found.append(Nearest(limit="memory", change=_context(shorter), plan=shorter))
    return tuple(found) or _all_lifted(request, find)


def _fewest_given_up(
    made: Callable[[PlanRequest, int], PlanRequest], request: PlanRequest, asked: int, least: int, find: Find
) -> ServingPlan | None:
    """The plan of the largest number below `asked` for which there is one, by halving; None when not even `least`."""
    best = find(made(request, least)) if asked > least else None
    if best is None:
        return None
    low, high = least, asked
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        plan = find(made(request, middle))
        if plan is None:
            high = middle
        else:
            low, best = middle, plan
    return best


def _with_concurrency(request: PlanRequest, concurrency: int) -> PlanRequest:
    return replace(request, traffic=replace(request.traffic, concurrency=concurrency))


def _with_context(request: PlanRequest, steps: int) -> PlanRequest:
    """The same requests, all their lengths cut alike, to a context of so many steps."""
    traffic = request.traffic
    part = steps * _STEP / traffic.context_tokens
    shorter = replace(
        traffic,
        context_tokens=steps * _STEP,
        prompt_tokens=max(1, floor(traffic.prompt_tokens * part)),
        output_tokens=max(1, floor(traffic.output_tokens * part)),
        shared_prefix_tokens=floor(traffic.shared_prefix_tokens * part),
        prompt=scaled(traffic.prompt, part) if traffic.prompt else None,
        output=scaled(traffic.output, part) if traffic.output else None,
    )
    return replace(request, traffic=shorter)


def _limits(request: PlanRequest) -> Iterator[Relaxation]:
    """Each limit of the user's, lifted alone."""
    limits = request.limits

    def lifted(limit: Limit, goal: Goal, says: Says, **changes: object) -> Relaxation:
        changed = replace(request, goal=goal, limits=replace(limits, **changes))  # type: ignore[arg-type]
        return Relaxation(limit=limit, request=changed, says=says)

    if limits.max_ttft_s is not None:
        yield lifted("ttft", "latency", _ttft, max_ttft_s=None)
    if limits.max_tpot_s is not None:
        yield lifted("tpot", "latency", _tpot, max_tpot_s=None)
    if limits.max_perplexity_increase is not None:
        yield lifted("quality", "single-gpu", _rise, max_perplexity_increase=None)
    if limits.weight_bits:
        yield lifted("precision", "single-gpu", _precision, weight_bits=frozenset())
    if limits.max_usd_per_hour is not None:
        yield lifted("budget", "cost", _budget, max_usd_per_hour=None)
    if request.traffic.request_per_s is not None:
        slower = replace(request, goal="throughput", traffic=replace(request.traffic, request_per_s=None))
        yield Relaxation(limit="rate", request=slower, says=_rate)


def _hardware(request: PlanRequest) -> Iterator[Relaxation]:
    """More GPUs of the same kind, then every scheme and cache type."""
    offers = tuple(
        GpuOffer(gpu=offer.gpu, counts=tuple(sorted({*offer.counts, *_MORE_GPUS}))) for offer in request.offers
    )
    if request.goal != "single-gpu" and len(offers) == 1:
        yield Relaxation(limit="goal", request=replace(request, offers=offers, goal="cost"), says=_gpus)
    if not request.settings.offline_batch and any(engine in OFFLOADS for engine, _ in request.engines):
        limits = request.limits
        batch = replace(
            request,
            limits=replace(limits, max_tpot_s=None) if limits.tpot_is_assumed else limits,
            settings=replace(request.settings, offline_batch=True),
        )
        yield Relaxation(limit="memory", request=batch, says=_batch)
    if request.schemes or request.kv_dtypes or request.layout is not None:
        free = replace(request, schemes=(), kv_dtypes=(), layout=None)
        yield Relaxation(limit="servable", request=free, says=_free)


def _all_lifted(request: PlanRequest, find: Find) -> tuple[Nearest, ...]:
    limits = replace(
        request.limits,
        max_ttft_s=None,
        max_tpot_s=None,
        max_perplexity_increase=None,
        max_usd_per_hour=None,
        weight_bits=frozenset(),
    )
    plan = find(replace(request, goal="latency", limits=limits, schemes=(), kv_dtypes=(), layout=None))
    if plan is None:
        return ()
    given = request.limits
    says = [
        *([_ttft(plan)] if given.max_ttft_s is not None and plan.speed.ttft_s > given.max_ttft_s else []),
        *([_tpot(plan)] if given.max_tpot_s is not None and plan.speed.tpot_s > given.max_tpot_s else []),
        *([_rise(plan)] if given.max_perplexity_increase is not None else []),
        *([_budget(plan)] if given.max_usd_per_hour is not None else []),
        *([_precision(plan)] if given.weight_bits else []),
    ]
    return (Nearest(limit="goal", change=" ".join(says) or _free(plan), plan=plan),)


def _ttft(plan: ServingPlan) -> str:
    return f"--max-ttft {ceil(plan.speed.ttft_s * 1000)}ms"


def _tpot(plan: ServingPlan) -> str:
    return f"--max-tpot {ceil(plan.speed.tpot_s * 1000)}ms"


def _rise(plan: ServingPlan) -> str:
    return f"--max-perplexity-increase {ceil(plan.quality.perplexity_increase * 1000) / 10:g}%"


def _budget(plan: ServingPlan) -> str:
    return f"--budget {ceil((plan.usd_per_hour or 0) * 100) / 100:g}/h"


def _precision(plan: ServingPlan) -> str:
    return f"--quant {plan.scheme or plan.weights_scheme} in place of --precision"


def _rate(plan: ServingPlan) -> str:
    return f"--request-rate {floor(plan.speed.request_per_s * 100) / 100:g}"


def _context(plan: ServingPlan) -> str:
    return f"--context {plan.settings.workload.context_tokens}"


def _gpus(plan: ServingPlan) -> str:
    return f"--gpu {plan.gpu.name}x{plan.num_gpus}"


def _batch(plan: ServingPlan) -> str:
    return "--offline-batch"


def _free(plan: ServingPlan) -> str:
    return f"--quant {plan.scheme or 'none'} --kv-dtype {plan.kv_dtype or 'auto'}"
