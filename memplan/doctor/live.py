"""A server that runs, looked at twice: what its cache holds beside what was predicted, how full it is, what it did
again.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor.metrics import Scrape
from memplan.domain.budget import MemoryBudget
from memplan.domain.diagnosis import Diagnosis, Evidence, Mend, WhyLine
from memplan.records import replace

_FULL = 0.95
_NEARLY = 0.85
_DRIFT = 0.05
# How many requests run, by engine.
_REQUESTS = {
    "sglang": "--max-running-requests",
    "tensorrt-llm": "--max_batch_size",
    "tgi": "--max-batch-size",
    "llama.cpp": "-np",
}


def server_diagnoses(
    before: Scrape, after: Scrape, seconds: float, budget: MemoryBudget | None
) -> tuple[Diagnosis, ...]:
    """Return what is the matter with a server, the gravest first; that nothing is, where that is so."""
    found = [*_pressure(before, after, seconds), *_drift(after, budget)]
    if not found:
        found = [Diagnosis(cause="runs_fine", severity="fine", sentence=_state(after))]
    working = tuple(_working(after, budget))
    evidence = tuple(_evidence(before, after, seconds))
    found[0] = replace(found[0], why=working if budget else (), evidence=evidence)
    return tuple(found)


def _pressure(before: Scrape, after: Scrape, seconds: float) -> Iterator[Diagnosis]:
    usage, waiting = after.get("usage") or 0.0, after.get("waiting") or 0.0
    again = (after.get("preemptions") or 0.0) - (before.get("preemptions") or 0.0)
    ever = after.get("preemptions") or 0.0
    if again > 0:
        yield Diagnosis(
            cause="preemption",
            severity="warning",
            sentence=f"{again:,.0f} requests lost their cache within {seconds:.1f} s and are computed again "
            f"({ever:,.0f} since the start); the KV cache is {100 * usage:.0f} % full, {waiting:,.0f} requests wait",
            because="more requests run than the cache holds once their answers grow",
            mends=_relief(after, usage),
        )
    elif put_back := after.get("put_back_now"):
        yield Diagnosis(
            cause="preemption",
            severity="warning",
            sentence=f"{put_back:,.0f} requests lost their cache in the last step; the KV cache is "
            f"{100 * usage:.0f} % full",
            because="more requests run than the cache holds once their answers grow",
            mends=_relief(after, usage),
        )
    elif usage >= _FULL and waiting > 0:
        yield Diagnosis(
            cause="runs_full",
            severity="warning",
            sentence=f"the KV cache is {100 * usage:.0f} % full and {waiting:,.0f} requests wait for it",
            because="the cache, not the processor, decides how many requests run",
            mends=_relief(after, usage),
        )
    elif ever > 0:
        yield Diagnosis(
            cause="preemption",
            severity="note",
            sentence=f"{ever:,.0f} requests lost their cache since the start, none within the last {seconds:.1f} s",
            mends=_relief(after, usage),
        )
    elif usage >= _NEARLY:
        yield Diagnosis(
            cause="runs_full",
            severity="note",
            sentence=f"the KV cache is {100 * usage:.0f} % full, nothing waits",
            mends=_relief(after, usage),
        )
    elif waiting > 0:
        yield from _held_back(after, waiting)


def _held_back(after: Scrape, waiting: float) -> Iterator[Diagnosis]:
    """Requests that wait beside a cache that is not full, or of which nothing is told."""
    usage = after.get("usage")
    if usage is None:
        yield Diagnosis(
            cause="requests_wait",
            severity="note",
            sentence=f"{waiting:,.0f} requests wait while {after.get('running') or 0:,.0f} run; how full the KV cache "
            "is, the server does not tell",
            because="all places are taken, or the next request has no room",
            mends=(Mend(change=f"raise {_limit(after)}", risk="medium", basis="rule", note="if there is room"),),
        )
    elif usage < 0.5:
        yield Diagnosis(
            cause="waits_without_need",
            severity="warning",
            sentence=f"{waiting:,.0f} requests wait while the KV cache is {100 * usage:.0f} % full: another "
            "limit holds",
            because="the number of requests or the tokens of a step let no more run",
            mends=(Mend(change=f"raise {_limit(after)}", risk="low", basis="rule", note="the cache has room"),),
        )


def _relief(after: Scrape, usage: float) -> tuple[Mend, ...]:
    running, capacity = after.get("running") or 0.0, after.capacity_tokens
    mends = []
    if running > 1:
        fewer = max(1, int(running * 0.8 / max(usage, 0.8)))
        each = f": each has {capacity // int(running):,} tokens now" if capacity and int(running) else ""
        mends.append(Mend(change=f"{_limit(after)} {fewer}", risk="low", basis="log", note=f"{running:,.0f} run{each}"))
    if after.engine == "vllm":
        mends.append(Mend(change="--gpu-memory-utilization or --kv-cache-memory-bytes: more", risk="low", basis="rule"))
        if after.info.get("cache_dtype", "auto") in ("auto", "bfloat16", "float16"):
            mends.append(
                Mend(change="--kv-cache-dtype fp8", risk="medium", basis="rule", note="twice the tokens; check quality")
            )
        mends.append(
            Mend(change="--watermark 0.05", risk="low", basis="rule", note="0.24 and later: admits with a reserve")
        )
    return tuple(mends)


def _limit(after: Scrape) -> str:
    """The option that says how many requests run."""
    return _REQUESTS.get(after.engine or "", "--max-num-seqs")


def _drift(after: Scrape, budget: MemoryBudget | None) -> Iterator[Diagnosis]:
    capacity = after.capacity_tokens
    predicted = budget.kv.capacity_tokens if budget else None
    if not capacity or not predicted:
        return
    off = capacity / predicted - 1
    if abs(off) > _DRIFT:
        more = "more" if off > 0 else "fewer"
        yield Diagnosis(
            cause="capacity_drift",
            severity="note",
            sentence=f"the cache holds {capacity:,} tokens, {100 * abs(off):.1f} % {more} than the {predicted:,} "
            f"predicted",
            because="the GPU, the release, a setting or another program differs from what was assumed",
            mends=(
                Mend(
                    change="memplan doctor --learn LOG",
                    risk="none",
                    basis="rule",
                    note="with the start-up log: the budget takes the measured terms over",
                ),
            ),
        )


def _working(after: Scrape, budget: MemoryBudget | None) -> Iterator[WhyLine]:
    kv = budget.kv if budget else None
    yield WhyLine(
        term="KV cache", unit="tokens", budget=kv.capacity_tokens if kv else None, measured=after.capacity_tokens
    )
    yield WhyLine(term="blocks", unit="count", budget=kv.blocks if kv else None, measured=after.blocks)
    yield WhyLine(
        term="tokens of a block", unit="tokens", budget=kv.block_size if kv else None, measured=after.block_tokens
    )


def _evidence(before: Scrape, after: Scrape, seconds: float) -> Iterator[Evidence]:
    for term, meaning in (
        ("requests running", "running"),
        ("requests waiting", "waiting"),
        ("preemptions since the start", "preemptions"),
        ("requests finished", "finished"),
    ):
        if (value := after.get(meaning)) is not None:
            yield Evidence(term=term, value=value, unit="count", where="/metrics")
    if (usage := after.get("usage")) is not None:
        yield Evidence(term="KV cache in use", value=usage, unit="fraction", where="/metrics")
    if after.capacity_tokens:
        yield Evidence(term="KV cache", value=after.capacity_tokens, unit="tokens", where="/metrics")
    if after.blocks:
        yield Evidence(term="blocks", value=after.blocks, unit="count", where="/metrics")
    for term, meaning in (("tokens computed a second", "output_tokens"), ("prompt tokens a second", "prompt_tokens")):
        new, old = after.get(meaning), before.get(meaning)
        if new is not None and old is not None and seconds > 0 and new >= old:
            yield Evidence(term=term, value=round((new - old) / seconds, 1), unit="count", where="/metrics, twice")
    hits, queries = after.get("hits"), after.get("queries")
    if hits is not None and queries:
        yield Evidence(term="prompt tokens found in the cache", value=hits / queries, unit="fraction", where="/metrics")
    waited, count = after.get("queue_sum"), after.get("queue_count")
    if waited is not None and count:
        yield Evidence(
            term="mean wait in the queue, ms", value=round(1000 * waited / count, 1), unit="count", where="/metrics"
        )
    if after.process_bytes:
        yield Evidence(term="host memory of the process", value=after.process_bytes, unit="bytes", where="/metrics")


def _state(after: Scrape) -> str:
    usage, running, waiting = after.get("usage"), after.get("running") or 0, after.get("waiting") or 0
    full = f"{100 * usage:.1f} % of its KV cache in use" if usage is not None else "its KV cache not told"
    held = f" of {after.capacity_tokens:,} tokens" if after.capacity_tokens else ""
    return f"the server runs with {full}{held}, {running:,.0f} requests running and {waiting:,.0f} waiting"
