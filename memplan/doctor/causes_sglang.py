"""What ends an SGLang server. Two of its messages sound alike and want opposite things of --mem-fraction-static."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor.facts import Facts, oom_free, oom_total
from memplan.doctor.telling import Refusal, refused, size, told
from memplan.domain.diagnosis import Diagnosis

_OOM = ("oom", "oom_short", "oom_wanted", "oom_driver")
_UNBALANCED = Refusal(
    at="sglang_unbalanced",
    cause="other_process",
    sentence="the GPUs have unequal free memory: something else runs on some of them",
    because="every rank takes what the poorest one has",
)


def causes(facts: Facts) -> Iterator[Diagnosis]:
    """Everything that the log names, what wants the fraction raised apart from what wants it lowered."""
    yield from _start(facts)
    yield from _running(facts)


def _start(facts: Facts) -> Iterator[Diagnosis]:
    seen, fraction = facts.seen, facts.share("mem_fraction_static")
    share = f" (mem_fraction_static {fraction:g})" if fraction else ""
    if place := seen.last("sglang_no_kv"):
        left = f"; {size(facts.free_bytes)} are free after loading" if facts.free_bytes is not None else ""
        weights = f"{size(facts.weights_bytes)} of " if facts.weights_bytes else ""
        yield told(
            facts,
            "no_kv_blocks",
            f"{weights}weights fill the static part of the GPU{share}, so nothing is left for the KV cache{left}: the "
            "fraction must be RAISED",
            because="the static part holds weights and cache; the rest is kept back for activations and graphs",
            at=(place.name,),
        )
    place = seen.last("sglang_capture_failed")
    if place is not None and not _ran_out(facts, f"{place.values.get('reason', '')} {place.text}"):
        yield told(
            facts,
            "graph_capture_failed",
            "CUDA graph capture failed, and not for want of memory: its advice about the fraction does not apply",
            because="the message names other reasons; kernels that cannot be captured or compiled among them",
            at=(place.name,),
        )
    elif place is not None or (facts.scanned.stage == "graphs" and any(name in seen for name in _OOM)):
        yield told(
            facts,
            "cuda_graph_oom",
            f"memory ran out while CUDA graphs were captured{share}{_figures(facts)}: the fraction must be LOWERED",
            because="graphs are captured after the cache was allocated, out of what the static part leaves",
            at=(place.name,) if place is not None else _OOM,
        )
    yield from refused(facts, (_UNBALANCED,))


def _running(facts: Facts) -> Iterator[Diagnosis]:
    seen = facts.seen
    if place := seen.last("sglang_prefill_oom", "sglang_decode_oom", "sglang_step_oom", "sglang_slots"):
        what = {"sglang_prefill_oom": "prefill", "sglang_decode_oom": "decode"}.get(place.name, "a step")
        yield told(
            facts,
            "kv_pool_exhausted",
            f"{what} found no room in the KV pool"
            + (f" of {facts.kv_tokens:,} tokens" if facts.kv_tokens else "")
            + ": more was admitted than it holds",
            because="this is the cache's own pool, not the GPU: more requests or tokens were running than it has "
            "slots for",
            at=(place.name,),
        )
    elif any(name in seen for name in _OOM) and "sglang_capture_failed" not in seen and facts.scanned.stage != "graphs":
        if facts.scanned.stage == "load" or (facts.scanned.stage == "unknown" and "sglang_loaded" not in seen):
            yield told(
                facts,
                "weights_oom",
                f"memory ran out while the weights were loaded{_figures(facts)}",
                because="no fraction mends this: the weights of one rank are larger than the GPU",
                at=_OOM,
                is_certain=facts.scanned.stage == "load",
            )
        else:
            yield told(
                facts,
                "runtime_oom",
                f"memory ran out in a step, outside of the static part{_figures(facts)}: the fraction must be LOWERED",
                because="activations of a prefill grow with chunked-prefill-size; the fraction says how much is "
                "kept for them",
                at=_OOM,
            )
    if seen.count("sglang_retract") and not any(name in seen for name in _OOM):
        yield told(
            facts,
            "preemption",
            f"the KV pool ran full {seen.count('sglang_retract'):,} times and running requests were put back to "
            f"the queue",
            severity="warning",
            because="more was admitted than the pool holds once answers grow",
            at=("sglang_retract",),
        )


def _ran_out(facts: Facts, text: str) -> bool:
    lower = text.lower()
    return "out of memory" in lower or ("oom" in facts.seen) or "oom_short" in facts.seen or "buffer overflow" in lower


def _figures(facts: Facts) -> str:
    free, total = oom_free(facts), oom_total(facts)
    if facts.wanted_bytes is None:
        return ""
    room = f", {size(free)} of {size(total)} were free" if free is not None else ""
    return f", asking for {size(facts.wanted_bytes)}{room}"
