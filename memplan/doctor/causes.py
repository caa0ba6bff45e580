"""From facts to what is the matter: every reader of causes is asked, and the most telling answer comes first.

An engine's own refusal is worth more than an allocation that failed, that more than what the engine told on the way,
and that more than what a person says of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor import (
    causes_host,
    causes_llama_cpp,
    causes_sglang,
    causes_tensorrt_llm,
    causes_torch,
    causes_vllm,
)
from memplan.doctor.facts import Facts
from memplan.doctor.telling import size, tokens, told
from memplan.domain.diagnosis import GRAVITY, Diagnosis

_OOM = ("oom", "oom_short", "oom_driver", "oom_exceeds", "oom_mps", "oom_wanted")
# How telling a cause is; the rest stand between.
_FIRST = ("memory_changed_while_profiling", "free_memory_below_request", "sampler_oom")
_LAST = ("preemption", "starts", "runs_full", "other_process_beside")
_FULL_SHARE = 0.95


def find_causes(facts: Facts) -> tuple[Diagnosis, ...]:
    """Return everything that is the matter, the most telling first; empty when nothing was understood."""
    found = list(_asked(facts))
    if not any(each.severity == "error" for each in found):
        found += _from_words(facts)
    if not any(each.severity in ("error", "warning") for each in found):
        found += _fine(facts)
    unique = {each.cause: each for each in reversed(found)}
    order = {each.cause: rank for rank, each in enumerate(found)}
    return tuple(sorted(unique.values(), key=lambda each: _rank(each, order)))


def _rank(each: Diagnosis, order: dict[str, int]) -> tuple[int, int, bool, int]:
    tier = 0 if each.cause in _FIRST else 2 if each.cause in _LAST else 1
    return GRAVITY[each.severity], tier, not each.is_certain, order[each.cause]


def _asked(facts: Facts) -> Iterator[Diagnosis]:
    seen = facts.seen
    own: list[Diagnosis] = []
    if facts.engine == "sglang":
        own = list(causes_sglang.causes(facts))
    elif facts.engine == "llama.cpp":
        own = list(causes_llama_cpp.causes(facts))
    elif facts.engine == "tensorrt-llm":
        own = list(causes_tensorrt_llm.causes(facts))
    else:
        own = list(causes_vllm.refusals(facts))
        if facts.engine == "vllm" and not own and any(name in seen for name in _OOM):
            own = [*_in_vllm(facts)]
    yield from own
    if not any(each.severity == "error" for each in own):
        if facts.engine in (None, "vllm") and not (facts.engine == "vllm" and any(name in seen for name in _OOM)):
            yield from causes_torch.allocator(facts)
        else:
            yield from causes_torch.libraries(facts)
    yield from causes_host.causes(facts)
    yield from _pressure(facts)


def _in_vllm(facts: Facts) -> Iterator[Diagnosis]:
    """Under vLLM the stage tells what mends it, unless others hold the memory or it lies in pieces."""
    by_stage = list(causes_vllm.stage_oom(facts))
    for each in causes_torch.allocator(facts):
        if each.cause in ("other_process", "process_limit"):
            yield each
    yield from by_stage


def _pressure(facts: Facts) -> Iterator[Diagnosis]:
    """A server that runs, and runs full."""
    seen = facts.seen
    total = seen.high("vllm_preempted", "total")
    if "vllm_preempted" in seen:
        number = int(total) if total else seen.count("vllm_preempted")
        yield told(
            facts,
            "preemption",
            f"running requests lost their cache {number:,} times because the KV cache was full, and were "
            f"computed again",
            severity="warning",
            because="more requests were running than the cache holds once their answers grow",
            at=("vllm_preempted",),
        )
    if "vllm_block_manager" in seen:
        yield told(
            facts,
            "context_exceeded",
            f"a prompt of {tokens(seen.high('vllm_block_manager', 'tokens'))} is longer than the whole KV cache",
            at=("vllm_block_manager",),
        )
    usage = seen.high("vllm_stats", "usage")
    waiting = seen.high("vllm_stats", "waiting") or 0
    if usage is not None and usage >= 100 * _FULL_SHARE and waiting > 0 and "vllm_preempted" not in seen:
        yield told(
            facts,
            "runs_full",
            f"the KV cache was up to {usage:.1f} % full while up to {waiting:,.0f} requests waited",
            severity="warning",
            at=("vllm_stats",),
        )


def _from_words(facts: Facts) -> list[Diagnosis]:
    """What a person says, where the engine's own words are missing."""
    seen = facts.seen
    for name, cause, sentence in (
        ("says_sampler", "sampler_oom", "memory ran out in the sampler's warm-up"),
        ("says_kv", "kv_too_small_for_len", "the KV cache is too small for the longest request"),
    ):
        if name in seen:
            return [told(facts, cause, sentence, at=(name,), is_certain=False)]
    if "says_oom" in seen or "says_loading" in seen:
        if "says_works" in seen and "says_graphs" not in seen and "says_loading" not in seen:
            return []
        if facts.available_bytes and facts.available_bytes > 0 and "says_serving" in seen:
            return []
        for name, cause, sentence in (
            ("says_loading", "weights_oom", "memory ran out while the weights were loaded"),
            ("says_graphs", "cuda_graph_oom", "memory ran out while CUDA graphs were captured"),
            ("says_profile", "profile_oom", "memory ran out in the profiling step"),
        ):
            if name in seen:
                return [told(facts, cause, sentence, at=(name,), is_certain=False)]
        if (
            facts.engine is None
            and "says_fails" not in seen
            and not any(n.startswith("command_") for n in seen.names())
        ):
            return [told(facts, "capacity", "memory ran out", at=("says_oom",), is_certain=False)]
    return []


def _fine(facts: Facts) -> list[Diagnosis]:
    """A start that came to its end, and what it has room for."""
    seen = facts.seen
    has_cache = bool(facts.kv_tokens or facts.kv_blocks or (facts.available_bytes or 0) > 0)
    computed = _left_over(facts)
    is_up = any(
        name in seen for name in ("llama_ready", "vllm_ready", "sglang_ready", "sglang_pool_end", "sglang_captured")
    )
    if not (has_cache or computed or is_up or "says_works" in seen):
        return []
    parts = []
    if facts.available_bytes and facts.engine != "llama.cpp":
        parts.append(f"{size(facts.available_bytes)} of KV cache")
    elif computed:
        parts.append(f"{size(computed)} left for the KV cache")
    if facts.kv_tokens:
        parts.append(tokens(facts.kv_tokens))
    requests = seen.last("vllm_concurrency")
    if requests is not None and (number := requests.number("requests")):
        parts.append(f"{number:.2f} requests of {tokens(requests.number('context'))}")
    room = f" with room for {', '.join(parts)}" if parts else ""
    is_told = has_cache or computed is not None
    return [
        told(
            facts,
            "starts",
            f"it starts{room}" if is_told else "it is said to start",
            severity="fine",
            at=("vllm_concurrency", "vllm_kv_tokens", "vllm_kv_available", "vllm_use", "says_works"),
            is_certain=is_told,
        )
    ]


def _left_over(facts: Facts) -> int | None:
    """What the printed terms leave for the cache."""
    terms = (facts.weights_bytes, facts.activation_bytes)
    if facts.requested_bytes is None or None in terms:
        return None
    used = sum(term or 0 for term in terms) + (facts.non_torch_bytes or 0)
    return facts.requested_bytes - used if facts.requested_bytes > used else None
