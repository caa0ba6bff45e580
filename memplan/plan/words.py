"""Two plans side by side, in words: what the one gains on the other on each axis."""

from __future__ import annotations

from memplan.domain.plan import PlanRequest, ServingPlan

_WORTH = 0.02


def loses_by(plan: ServingPlan, winner: ServingPlan) -> tuple[str, ...]:
    """What a plan is worse at than the winner, and then what it is better at, each as a short phrase."""
    worse: list[str] = []
    better: list[str] = []
    for name, ours, theirs, less_is_better in _axes(plan, winner):
        if ours is None or theirs is None or abs(ours - theirs) <= _WORTH * max(abs(ours), abs(theirs)):
            continue
        is_worse = (ours > theirs) == less_is_better
        change = f"{(ours / theirs - 1):+.0%}" if theirs else f"+{ours:.3g}"
        (worse if is_worse else better).append(f"{name} {change}")
    rise = plan.quality.perplexity_increase - winner.quality.perplexity_increase
    if abs(rise) > 0.0005:
        (worse if rise > 0 else better).append(f"perplexity {rise:+.1%}")
    said = [*worse, *(f"better: {text}" for text in better)]
    return tuple(said) or ("nothing that the model can tell: a tie",)


def wins_by(winner: ServingPlan, runner_up: ServingPlan | None, request: PlanRequest) -> tuple[str, ...]:
    """Why a plan wins: what its goal looks at."""
    price = (
        f"${winner.usd_per_hour:,.2f} an hour"
        if winner.usd_per_hour is not None
        else f"{winner.num_gpus} GPU{'s' if winner.num_gpus > 1 else ''}"
    )
    per_s = winner.output_tokens_per_s
    rate = f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.2g}"
    rate += " output tokens a second"
    per_token = winner.usd_per_million_tokens
    said = {
        "cost": f"the cheapest that serves the load: {price}"
        if request.demand_is_fixed
        else f"the cheapest token: ${per_token:,.2f} for a million"
        if per_token is not None
        else f"the most output tokens for each GPU: {rate}",
        "throughput": f"the most output tokens a second: {rate}",
        "latency": f"the fastest answer: {latency_s(winner, request):,.2f} s for a whole request",
        "long-context": f"the cheapest that holds the context: {price}",
        "multi-tenant": f"the most requests of their real length at once for the money: {price}",
        "single-gpu": "the least quality risk on one GPU, and then the fastest",
    }[request.goal]
    return (said,)


def latency_s(plan: ServingPlan, request: PlanRequest) -> float:
    """Seconds from a request to its last token."""
    return plan.speed.ttft_s + (request.traffic.output_tokens - 1) * plan.speed.tpot_s


def _axes(plan: ServingPlan, winner: ServingPlan) -> list[tuple[str, float | None, float | None, bool]]:
    return [
        ("dollars an hour", plan.usd_per_hour, winner.usd_per_hour, True),
        ("GPUs", float(plan.num_gpus), float(winner.num_gpus), True),
        ("output tokens/s", plan.output_tokens_per_s, winner.output_tokens_per_s, False),
        ("first token", plan.speed.ttft_s, winner.speed.ttft_s, True),
        ("each token", plan.speed.tpot_s, winner.speed.tpot_s, True),
        ("headroom", plan.headroom_fraction, winner.headroom_fraction, False),
    ]
