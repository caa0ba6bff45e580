"""What a simulation's pages say, in words and figures: one place for text, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from memplan.domain.simulated import Promise, SimulatedSetup, SimulationAnswer, TrafficSummary
from memplan.domain.simulation import Percentiles, SimulationResult, SimulationSettings, Waste
from memplan.report.words import engine, gpus, scheme

TIMES = ("", "mean", "p50", "p90", "p95", "p99", "longest")
TIMES_RIGHT = frozenset(range(1, 7))
COLUMNS = (
    *("setup", "GPUs", "blocks", "req/s", "good/s", "kept", "tok/s", "ttft p95", "tpot p95", "in use", "wasted"),
    *("back", "rejected"),
)
_WITHOUT_LIMITS = frozenset({"good/s", "kept"})
_IF_DIFFERENT = frozenset({"GPUs", "blocks", "back", "rejected"})
LEGEND = (
    "req/s: requests finished a second, good/s: those within the limits; kept: their share of all; "
    "ttft, tpot: the wait for the first token and for each further one; in use: mean part of the cache that "
    "requests hold, wasted: what of that holds no token; back: requests put back and computed again"
)
WASTES = {
    "tokens": ("tokens", "stored, to be read by requests that run"),
    "internal": ("internal", "the empty end of last blocks"),
    "reserved": ("reserved, unused", "kept for tokens to come"),
    "external": ("external", "between contiguous pieces, too small for any request that waits"),
    "cached": ("prefix cache", "of finished requests, may be found again"),
    "free": ("free", "the rest"),
}


def traffic(summary: TrafficSummary) -> str:
    """The requests in a sentence."""
    return (
        f"{summary.requests:,} requests, {summary.source}; prompts of {summary.mean_prompt_tokens:,.0f} tokens "
        f"on average (95 % below {summary.p95_prompt_tokens:,}), answers of {summary.mean_output_tokens:,.0f} "
        f"({summary.p95_output_tokens:,})"
    )


def deployment(setup: SimulatedSetup) -> str:
    """What serves, in a sentence."""
    budget, settings = setup.budget, setup.result.settings
    parts = [gpus(budget), engine(budget), f"weights in {scheme(budget)}" if scheme(budget) else "", cache(settings)]
    if settings.replicas > 1 or settings.prefill_replicas:
        parts.append(replicas(settings))
    parts.append(f"at most {settings.max_num_seqs:,} requests and {settings.max_num_batched_tokens:,} tokens in a step")
    if settings.batching == "static":
        parts.append("static batching")
    return ", ".join(part for part in parts if part)


def cache(settings: SimulationSettings) -> str:
    """The cache in words."""
    tokens = " and ".join(str(size) for size in sorted({group.block_tokens for group in settings.groups}))
    pool = f"{settings.num_blocks:,} blocks of {tokens} tokens"
    if settings.allocation == "contiguous":
        return f"contiguous caches ({settings.reserve} reserved) in the room of {pool}"
    return f"{pool}, prefixes kept" if settings.prefix_caching else pool


def replicas(settings: SimulationSettings) -> str:
    """How many replicas there are, and how requests reach them."""
    if settings.prefill_replicas:
        return f"{settings.prefill_replicas} replicas that read prompts, {settings.replicas} that answer"
    return f"{settings.replicas} replicas, {settings.routing} routing"


def promise(limits: Promise) -> str:
    """The limits in words."""
    parts = []
    if limits.max_ttft_s is not None:
        parts.append(f"the first token within {seconds(limits.max_ttft_s)}")
    if limits.max_tpot_s is not None:
        parts.append(f"each further one within {seconds(limits.max_tpot_s)}")
    return " and ".join(parts)


def verdict(setup: SimulatedSetup, limits: Promise) -> tuple[str, str]:
    """The word and the sentence of a setup: whether it keeps the limits, else what it serves."""
    counts, goodput = setup.result.counts, setup.goodput
    if setup.keeps is None:
        word = "SERVED" if counts.finished == counts.requests else "NOT ALL SERVED"
        return word, f"{counts.finished:,} of {counts.requests:,} requests, {_pace(setup.result)}"
    word = "KEEPS" if setup.keeps else "MISSES"
    return word, (
        f"{percent(goodput.share)} of the requests get {promise(limits)} (asked for: {percent(limits.share)}), "
        f"{goodput.requests_per_s:,.2f} a second"
    )


def facts(setup: SimulatedSetup) -> list[tuple[str, str]]:
    """Names and values of one setup's run."""
    result = setup.result
    counts, waste = result.counts, result.waste
    rows = [("throughput", _pace(result))] if setup.keeps is not None else []
    rows += [
        (
            "duration",
            f"{seconds(result.duration_s)}, of which {percent(result.busy_s / max(1e-9, result.duration_s))} busy",
        ),
        (
            "requests",
            f"{counts.finished:,} finished, {counts.rejected:,} rejected, {counts.unfinished:,} unfinished; "
            f"at most {counts.most_running:,} running and {counts.most_waiting:,} waiting",
        ),
        ("preemptions", preemptions(result)),
        (
            "cache",
            f"{percent(held(waste))} in use on average, {percent(peak(result))} at most; "
            f"{percent(wasted(waste))} of what is in use holds no token",
        ),
    ]
    if result.settings.prefix_caching or counts.cached_tokens:
        rows.append(
            ("prefix cache", f"{percent(counts.cached_tokens / max(1, counts.prompt_tokens))} of prompt tokens found")
        )
    if waste.shared > 0.0005:
        rows.append(("sharing", f"saves {percent(waste.shared)} of the cache"))
    return rows


def preemptions(result: SimulationResult) -> str:
    """How often requests gave way, and what that cost."""
    counts = result.counts
    if not counts.preemptions:
        return "none"
    part = counts.recomputed_tokens / max(1, counts.computed_prompt_tokens)
    words = f"{counts.preemptions:,}, {percent(part)} of all prompt tokens computed again"
    return f"{words}, {counts.swaps:,} swapped" if counts.swaps else words


def times(result: SimulationResult) -> list[list[str]]:
    """Rows of percentiles."""
    found: list[tuple[str, Percentiles | None]] = [
        ("first token", result.ttft),
        ("each further token", result.tpot),
        ("whole request", result.end_to_end),
        ("of that, queued", result.queued),
    ]
    return [
        [name, *(seconds(getattr(each, key)) for key in ("mean", "p50", "p90", "p95", "p99", "longest"))]
        for name, each in found
        if each is not None
    ]


def wastes(waste: Waste) -> list[tuple[str, str, str]]:
    """The parts of the cache: name, share, what it is. Those that are nothing are left out but for the wasteful."""
    shown = {name: getattr(waste, name) for name in WASTES}
    return [
        (WASTES[name][0], percent(part), WASTES[name][1])
        for name, part in shown.items()
        if part > 0 or name in ("internal", "reserved", "external")
    ]


def held(waste: Waste) -> float:
    """The part of the cache that requests hold, or that nothing else can have."""
    return waste.tokens + waste.internal + waste.reserved + waste.external


def wasted(waste: Waste) -> float:
    """Of what requests hold, the part that stores no token."""
    whole = held(waste)
    return (whole - waste.tokens) / whole if whole > 0 else 0.0


def peak(result: SimulationResult) -> float:
    """The fullest the cache of any replica was."""
    return result.counts.most_blocks / max(1, result.settings.num_blocks)


def side_by_side(answer: SimulationAnswer) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of all setups, without columns that say nothing or the same of all."""
    rows = [_row(setup) for setup in answer.setups]
    kept = [
        place
        for place, name in enumerate(COLUMNS)
        if not (name in _WITHOUT_LIMITS and not answer.promise.is_made)
        and not (name in _IF_DIFFERENT and len({row[place] for row in rows}) == 1)
    ]
    return [COLUMNS[place] for place in kept], [[row[place] for place in kept] for row in rows]


def right_columns(head: Sequence[str]) -> frozenset[int]:
    """The columns that hold numbers."""
    return frozenset(place for place, name in enumerate(head) if name not in ("setup", "GPUs"))


def _row(setup: SimulatedSetup) -> list[str]:
    """One setup beside others."""
    result = setup.result
    counts = result.counts
    return [
        setup.name,
        gpus(setup.budget),
        f"{result.settings.num_blocks:,}",
        f"{result.requests_per_s:,.2f}",
        f"{setup.goodput.requests_per_s:,.2f}",
        percent(setup.goodput.share),
        f"{result.output_tokens_per_s:,.0f}",
        seconds(result.ttft.p95) if result.ttft else "-",
        seconds(result.tpot.p95) if result.tpot else "-",
        percent(held(result.waste)),
        percent(wasted(result.waste)),
        f"{counts.preemptions:,}",
        f"{counts.rejected:,}",
    ]


def least(answer: SimulationAnswer) -> str:
    """The least GPU that keeps the limits; empty where nothing was promised."""
    if not answer.promise.is_made:
        return ""
    found = answer.least
    if found is None:
        return "none of these setups keeps the limits, with up to 64 replicas"
    dollars = f", ${found.usd_per_hour:,.2f} an hour" if found.usd_per_hour else ""
    count = found.result.settings.replicas
    name = f"{found.name}, {count} replicas" if count > 1 else found.name
    return f"{gpus(found.budget)}{dollars}: {name}, {verdict(found, answer.promise)[1]}"


def notes(answer: SimulationAnswer) -> list[str]:
    """What there is to know beside the figures."""
    first = answer.setups[0]
    source = getattr(first.result.settings.steps, "source", "")
    said = [*answer.traffic.notes, *answer.notes, *first.result.notes]
    return [*said, f"step times: {source}"] if source else said


def percent(part: float) -> str:
    """A part of a whole."""
    return f"{100 * part:.1f} %"


def seconds(value: float) -> str:
    """A time as people say it."""
    if value < 0:
        return "-"
    if value < 0.0995:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 99.5:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    return f"{value:,.0f} s"


def thinned(values: Sequence[float], count: int) -> list[float]:
    """The largest of each of `count` equal parts."""
    size = len(values)
    edges = [round(part * size / count) for part in range(count + 1)]
    return [max(values[low:high]) for low, high in pairwise(edges) if high > low]


def _pace(result: SimulationResult) -> str:
    return f"{result.requests_per_s:,.2f} requests and {result.output_tokens_per_s:,.0f} output tokens a second"
