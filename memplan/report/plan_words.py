"""What a plan says, in words and cells that every format shares."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.lengths import FixedLength, Lengths
from memplan.domain.plan import Limit, PlanAnswer, PrefillPool, Rejection, ServingPlan, Speculation
from memplan.domain.serving import ParallelLayout
from memplan.report.words import device
from memplan.units import format_gib

COLUMNS = (
    "GPUs",
    "engine",
    "layout",
    "weights",
    "cache",
    "at once",
    "tok/s",
    "first",
    "each",
    "$/h",
    "$/M",
    "left",
    "quality",
)
"""The table of the front: output tokens a second, seconds to the first token, milliseconds for each further one,
dollars an hour and for a million output tokens, memory left beside the asked requests, and the rise of perplexity.
"""
RIGHT = frozenset({5, 6, 7, 8, 9, 10, 11})
LEGEND = (
    "tok/s: output tokens a second of all requests; first, each: the wait for the first token and for each further "
    "one; $/h from the cheapest source, $/M for a million output tokens; left: memory of the fullest GPU beside the "
    "asked requests; quality: the published rise of perplexity."
)
LIMITS: dict[Limit, str] = {
    "servable": "does not run",
    "precision": "--precision",
    "quality": "--max-perplexity-increase",
    "budget": "--budget",
    "shape": "cannot be cut so",
    "memory": "memory",
    "ttft": "--max-ttft",
    "tpot": "--max-tpot",
    "rate": "--request-rate",
    "goal": "the goal",
    "dominated": "beaten",
}


def title(answer: PlanAnswer) -> str:
    """What was asked, on one line."""
    traffic = answer.request.traffic
    load = "requests"
    if traffic.concurrency:
        load = f"{traffic.concurrency:,} request{'s' if traffic.concurrency > 1 else ''}"
    if traffic.request_per_s:
        load = f"{traffic.request_per_s:g} requests a second"
    lengths = (
        f"{_tokens(traffic.prompt, traffic.prompt_tokens)} in and {_tokens(traffic.output, traffic.output_tokens)}"
    )
    return f"{load} of up to {traffic.context_tokens:,} tokens, {lengths} out"


def _tokens(lengths: Lengths | None, mean: int) -> str:
    """`1,200`, or `1,200 (p95 4,000)` where lengths are spread."""
    if lengths is None or isinstance(lengths, FixedLength):
        return f"{mean:,}"
    return f"{mean:,} (p95 {lengths.quantile(0.95):,.0f})"


def layout(cut: ParallelLayout) -> str:
    """`TP 4`, `TP 4 x PP 2`, `DP 8 EP`; `one GPU`."""
    parts = [
        f"{name} {size}" for name, size in (("TP", cut.tensor), ("PP", cut.pipeline), ("DP", cut.data)) if size > 1
    ]
    return " x ".join(parts) + (" EP" if cut.expert else "") or "one GPU"


def cut(plan: ServingPlan) -> str:
    """How a plan is cut, the pool that only prefills first, with what drafts: `2 TP 1 > TP 4`, `TP 4, mtp 3`."""
    decode = "CPU" if _is_host(plan) else layout(plan.layout)
    if plan.prefill is not None:
        pools = (plan.prefill.layout, plan.layout)
        decode = " > ".join(f"{pool.data} TP {pool.tensor}" for pool in pools)
    return f"{decode}, {plan.speculation.name} {plan.speculation.num_tokens}" if plan.speculation else decode


def gpus(plan: ServingPlan) -> str:
    return f"{plan.num_gpus} x {plan.gpu.name}"


def cache(plan: ServingPlan) -> str:
    return plan.kv_dtype or "auto"


def quality(plan: ServingPlan) -> str:
    rise = plan.quality.perplexity_increase
    return f"+{rise:.1%}" if rise >= 0.0005 else "as is"


def row(plan: ServingPlan) -> list[str]:
    """One plan as the cells of COLUMNS."""
    return [
        gpus(plan),
        plan.engine,
        cut(plan),
        plan.weights_scheme,
        cache(plan),
        f"{plan.concurrency:,}",
        rate(plan.output_tokens_per_s),
        seconds(plan.speed.ttft_s),
        seconds(plan.speed.tpot_s),
        f"{plan.usd_per_hour:,.2f}" if plan.usd_per_hour is not None else "-",
        f"{plan.usd_per_million_tokens:,.2f}" if plan.usd_per_million_tokens is not None else "-",
        f"{plan.headroom_fraction:.0%}",
        quality(plan),
    ]


def rate(value: float) -> str:
    """A rate with two digits at least."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def seconds(value: float) -> str:
    """A time in the unit that it reads best in."""
    return f"{value * 1e3:,.0f} ms" if value < 1 else f"{value:,.1f} s"


def sentence(plan: ServingPlan) -> str:
    """A plan in one line."""
    price = f", ${plan.usd_per_hour:,.2f} an hour" if plan.usd_per_hour is not None else ""
    shape = "on the CPU" if _is_host(plan) else layout(plan.layout)
    if plan.prefill is not None:
        shape = f"{_pool(plan.prefill.layout)} for prefill and {_pool(plan.layout)} for decode"
    drafts = f", drafts by {plan.speculation.name}" if plan.speculation else ""
    return (
        f"{gpus(plan)}, {plan.engine} {plan.version}, {shape}, weights in {plan.weights_scheme}, "
        f"cache in {cache(plan)}{drafts}{price}"
    )


def _pool(cut: ParallelLayout) -> str:
    return f"{cut.data} x TP {cut.tensor}" if cut.tensor > 1 else f"{cut.data} x one GPU"


def promises(plan: ServingPlan) -> list[tuple[str, str]]:
    """What the winner does, as names and values."""
    bound = plan.speed.bound
    return [
        ("at once", _at_once(plan)),
        (
            "speed",
            f"first token after {seconds(plan.speed.ttft_s)}, then one every {seconds(plan.speed.tpot_s)}; "
            f"{rate(plan.output_tokens_per_s)} output tokens a second in all",
        ),
        ("bound by", f"{bound['prefill']} in prefill, {bound['decode']} in decode"),
        ("left", f"{plan.headroom_fraction:.0%} of the {_fullest(plan)} beside the asked requests"),
        (
            "quality",
            _risk(plan),
        ),
        *([("kernel", plan.kernel)] if plan.kernel else []),
        *([("drafts", _drafts(plan.speculation))] if plan.speculation else []),
        *([("pools", _pools(plan.prefill))] if plan.prefill else []),
        *([("host", _host(plan))] if plan.settings.weight_offload_bytes else []),
    ]


def _drafts(drafted: Speculation) -> str:
    who = "the model's own predictors" if drafted.name == "mtp" else drafted.name
    return (
        f"{drafted.num_tokens} token{'s' if drafted.num_tokens > 1 else ''} a step from {who}, "
        f"{drafted.acceptance:.0%} of them taken to be accepted ({drafted.source})"
    )


def _pools(pool: PrefillPool) -> str:
    return (
        f"the prefill pool works {pool.busy_fraction:.0%} of the time; a prompt's cache takes "
        f"{seconds(pool.transfer_s)} over {pool.link}; in one pool the prompts of others would add "
        f"{seconds(pool.shared_tpot_s)} to every token"
    )


def _other_pool(pool: PrefillPool) -> str:
    asked = pool.settings
    steps = f" --max-num-seqs {asked.max_num_seqs}" if asked.max_num_seqs else ""
    return (
        f"estimate and emit-config take the pool that decodes; --tp {pool.layout.tensor} --dp {pool.layout.data} "
        f"--concurrency {asked.workload.concurrency}{steps} is the pool that prefills; both start with the engine's KV "
        "transfer between them"
    )


def _host(plan: ServingPlan) -> str:
    return (
        f"{format_gib(plan.settings.weight_offload_bytes * plan.num_gpus)} of weights in host memory, read every step"
    )


def _fullest(plan: ServingPlan) -> str:
    return "machine" if _is_host(plan) else "fullest GPU"


def _is_host(plan: ServingPlan) -> bool:
    return device(plan.budget) == "machine"


def _at_once(plan: ServingPlan) -> str:
    requests = f"{plan.concurrency:,} request{'s' if plan.concurrency != 1 else ''}"
    seqs = plan.settings.max_num_seqs
    each = " on each replica" if plan.layout.data > 1 else ""
    full = plan.settings.workload.concurrency
    room = f"; the cache holds them as {full:,} of the longest" if full != plan.concurrency else ""
    return f"{requests}, --max-num-seqs {seqs}{each}{room}" if seqs else requests + room


def _risk(plan: ServingPlan) -> str:
    found = plan.quality
    rise = f"perplexity {quality(plan)}, {found.level} risk" if found.level != "none" else "no rise of perplexity"
    return f"{rise} ({found.provenance}: {found.source})"


def rejections(answer: PlanAnswer, most: int) -> list[tuple[str, str, str, str]]:
    """The largest regions that were ruled out: candidates, region, limit and reason. What was beaten comes last."""
    chosen = [entry for entry in answer.rejections if entry.limit != "dominated"][:most]
    return [(f"{entry.candidates:,}", entry.region, LIMITS[entry.limit], entry.reason) for entry in chosen]


def beaten(rejected: Sequence[Rejection]) -> int:
    """How many candidates were left because another plan is at least as good on every axis."""
    return sum(entry.candidates for entry in rejected if entry.limit == "dominated")


def notes(answer: PlanAnswer) -> list[str]:
    """What the reader should know of the answer: assumed limits, the notes of the winner's speed and budget."""
    limits = answer.request.limits
    said = list(answer.notes)
    if limits.tpot_is_assumed and limits.max_tpot_s is not None:
        pace = f"{seconds(limits.max_tpot_s)} for each token"
        said.append(
            f"slower than people read is not served: {pace} at most; --max-tpot or --offline-batch changes that"
        )
    winner = answer.winner
    if winner is not None:
        low, high = seconds(winner.speed.low_tpot_s), seconds(winner.speed.high_tpot_s)
        said.append(
            f"speeds are modelled: 90 % of published measurements lie within {low} .. {high} for this token time"
        )
        said += [*winner.speed.notes, *winner.budget.warnings]
        if winner.prefill is not None:
            said.append(_other_pool(winner.prefill))
        if winner.gpu.price is not None:
            said.append(f"price: on demand, {winner.gpu.price.source}")
    return list(dict.fromkeys(said))
