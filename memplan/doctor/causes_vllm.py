"""What ends a vLLM server, told apart by what it says and by the stage at which it says it."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor.facts import Facts, oom_free, oom_total
from memplan.doctor.telling import Refusal, refused, size, tokens, told
from memplan.domain.diagnosis import Diagnosis


def refusals(facts: Facts) -> Iterator[Diagnosis]:
    """What vLLM refuses outright. Source: as read_vllm.py."""
    yield from _cache(facts)
    yield from _free_memory(facts)
    yield from _warm_up(facts)
    yield from _settings(facts)


def _cache(facts: Facts) -> Iterator[Diagnosis]:
    seen = facts.seen
    if place := seen.last("vllm_needs_kv", "vllm_needs_kv_cut", "vllm_too_long", "vllm_too_long_words"):
        yield told(
            facts,
            "kv_too_small_for_len",
            _too_long(facts, is_sized=place.name.startswith("vllm_needs_kv")),
            because="vLLM starts only if the cache holds one request of the longest length that it allows",
            at=(place.name,),
        )
    if place := seen.last("vllm_no_blocks"):
        yield _no_blocks(facts, place.name)
    elif facts.kv_blocks == 0 and "vllm_blocks" in seen:
        yield _no_blocks(facts, "vllm_blocks")
    elif (facts.available_bytes or 0) < 0:
        yield _no_blocks(facts, "vllm_kv_available")


def _too_long(facts: Facts, *, is_sized: bool) -> str:
    """What lacks for one request, in bytes where the line tells them (`is_sized`), else in tokens."""
    context = tokens(facts.integer("context"))
    if is_sized:
        longest = f"; the longest that fits is {tokens(facts.longest_tokens)}" if facts.longest_tokens else ""
        needed, there = size(facts.needed_bytes), size(facts.available_bytes)
        return f"one request of {context} needs {needed} of KV cache and there are {there}{longest}"
    if facts.kv_tokens:
        return f"the KV cache holds {tokens(facts.kv_tokens)}, fewer than the {context} that one request may have"
    return "the KV cache does not hold one request of the longest length that is allowed"


def _no_blocks(facts: Facts, at: str) -> Diagnosis:
    part = facts.requested_bytes
    if part is None and facts.total_bytes and (share := facts.share("gpu_memory_utilization")):
        part = int(facts.total_bytes * share)
    used = sum(x or 0 for x in (facts.weights_bytes, facts.activation_bytes, facts.non_torch_bytes))
    others = facts.initial_bytes if _counts_others(facts) else None
    room = f" of {size(part)} that it may take" if part else ""
    if others:
        sentence = (
            f"nothing{room} is left for the KV cache: {size(others)} of the GPU were in use before it started, and "
            "this release counts them against its part"
        )
    elif used and part:
        sentence = f"nothing{room} is left for the KV cache: weights, activations and the rest take {size(used)}"
    elif facts.weights_bytes:
        sentence = f"nothing{room} is left for the KV cache once {size(facts.weights_bytes)} of weights are loaded"
    else:
        sentence = f"nothing{room} is left for the KV cache once weights are loaded and a step was run"
    return told(
        facts,
        "no_kv_blocks",
        sentence,
        because="the cache is what the engine's part of the GPU leaves after weights and the largest step",
        at=(at,),
    )


def _counts_others(facts: Facts) -> bool:
    """Whether other programs' memory was there before: more than the weights of this one explain."""
    initial, weights = facts.initial_bytes, facts.weights_bytes
    if initial is None:
        return False
    return initial - (weights or 0) > 2 << 30 if weights else initial > 24 << 30


def _free_memory(facts: Facts) -> Iterator[Diagnosis]:
    seen = facts.seen
    if place := seen.last("vllm_free_low"):
        missing = (facts.requested_bytes or 0) - (facts.free_bytes or 0)
        taken = (facts.total_bytes or 0) - (facts.free_bytes or 0)
        yield told(
            facts,
            "free_memory_below_request",
            f"{size(facts.free_bytes)} of {size(facts.total_bytes)} are free at the start, {size(missing)} less than "
            f"the {size(facts.requested_bytes)} that gpu_memory_utilization "
            f"{facts.share('gpu_memory_utilization') or 0:g} asks for: something else holds {size(taken)}",
            because="vLLM takes its part of the whole GPU, not of what is free",
            at=(place.name,),
        )
    elif place := seen.last("vllm_free_low_cut"):
        yield told(
            facts,
            "free_memory_below_request",
            "less is free on the GPU at the start than gpu_memory_utilization asks for: something else holds it",
            because="vLLM takes its part of the whole GPU, not of what is free",
            at=(place.name,),
        )
    if place := seen.last("vllm_profile_changed"):
        before, after = place.number("initial"), place.number("current")
        figures = f" ({size(before)} free before, {size(after)} after)" if before is not None else ""
        yield told(
            facts,
            "memory_changed_while_profiling",
            f"another process gave memory back while vLLM measured its own{figures}, so the measurement is void",
            because="what a step takes is the difference of free memory before and after it",
            at=(place.name,),
        )


def _warm_up(facts: Facts) -> Iterator[Diagnosis]:
    place = facts.seen.last("vllm_sampler")
    if place is not None and ("oom_short" in facts.seen or "oom" in facts.seen or "warming" in place.text):
        number = facts.seen.high("vllm_sampler", "requests") or facts.integer("max_num_seqs")
        asked = f", asking for {size(facts.wanted_bytes)}" if facts.wanted_bytes else ""
        free = oom_free(facts)
        yield told(
            facts,
            "sampler_oom",
            f"the sampler's warm-up with {number:,.0f} made-up requests ran out of memory{asked}"
            + (f" with {size(free)} free" if free is not None else "")
            if number
            else f"the sampler's warm-up ran out of memory{asked}",
            because="it sorts the logits of max_num_seqs requests over the whole vocabulary, after the cache has been "
            "given everything that was left",
            at=("vllm_sampler",),
        )
    yield from refused(facts, (_POOLER,))


_POOLER = Refusal(
    at="vllm_pooler",
    cause="pooler_oom",
    sentence="the pooler's warm-up ran out of memory",
    because="it runs max_num_seqs made-up requests through the model's head",
)


def _settings(facts: Facts) -> Iterator[Diagnosis]:
    """Settings that contradict each other, the model or the release."""
    yield from refused(facts, _REFUSED_LIMITS)
    if place := facts.seen.last("vllm_no_quant_config"):
        method = place.values.get("method") or facts.text("quantization") or "a quantized format"
        yield told(
            facts,
            "not_quantized",
            f"--quantization {method} was asked of a checkpoint that has no {method} weights",
            because="the option names how a checkpoint is stored; most formats cannot be made while loading",
            at=(place.name,),
        )
    yield from refused(facts, _REFUSED_OPTIONS)


_REFUSED_LIMITS = (
    Refusal(
        at="vllm_tokens_below_len",
        cause="step_below_context",
        sentence="a step of {tokens:n} tokens cannot take a prompt of {context:n} at once, and chunked prefill is off",
    ),
    Refusal(
        at="vllm_tokens_below_seqs",
        cause="step_below_requests",
        sentence="a step of {tokens:n} tokens is smaller than max_num_seqs {seqs:n}",
    ),
    Refusal(
        at="vllm_state_blocks",
        cause="state_blocks",
        sentence="max_num_seqs {seqs:n} is more than the {blocks:n} recurrent states that have room",
        because="every running request of a model with Mamba layers keeps a state of its own",
    ),
    Refusal(
        at="vllm_swap_large",
        cause="swap_too_large",
        sentence="swap space of {swap:size} is too much of {host:size} of host memory",
    ),
    Refusal(
        at="vllm_heads",
        cause="shards_uneven",
        sentence="{heads:n} attention heads do not divide by {tp:n} tensor-parallel ranks",
    ),
    Refusal(
        at="vllm_shards",
        cause="shards_uneven",
        sentence="a quantized weight does not divide by the tensor-parallel ranks: its groups would be cut",
    ),
)
_REFUSED_OPTIONS = (
    Refusal(
        at="vllm_quant_mismatch",
        cause="quantization_mismatch",
        sentence="--quantization {method} was asked of a checkpoint that is stored as {own}",
    ),
    Refusal(
        at="unrecognized",
        cause="unknown_option",
        sentence="the release does not know the option {option}",
    ),
)


def stage_oom(facts: Facts) -> Iterator[Diagnosis]:
    """Memory that ran out without a message of vLLM's own: what it was doing decides what mends it."""
    free, total = oom_free(facts), oom_total(facts)
    wanted = f"asking for {size(facts.wanted_bytes)}" if facts.wanted_bytes else "with no figure told"
    figures = f", {wanted} with {size(free)} of {size(total)} free" if free is not None else f", {wanted}"
    stage, is_told = _stage(facts)
    at = ("oom", "oom_wanted", "oom_short", "oom_driver", "says_oom")
    cause, sentence, because = _STAGES[stage]
    yield told(facts, cause, f"{sentence}{figures}", because=because, at=at, is_certain=is_told)


_STAGES = {
    "load": (
        "weights_oom",
        "memory ran out while the weights were loaded",
        "the weights of one rank, with what conversion and repacking need beside them, are larger than the GPU",
    ),
    "profile": (
        "profile_oom",
        "memory ran out in the profiling step, which runs the largest batch that the settings allow",
        "its activations grow with max_num_batched_tokens, without chunked prefill with the context, and with media",
    ),
    "sampler": (
        "sampler_oom",
        "memory ran out in the sampler's warm-up",
        "it sorts the logits of max_num_seqs requests over the whole vocabulary",
    ),
    "kv": (
        "kv_allocation_oom",
        "memory ran out while the KV cache was allocated",
        "what profiling found free was no longer free: another process, or memory outside of PyTorch, took it",
    ),
    "graphs": (
        "cuda_graph_oom",
        "memory ran out while CUDA graphs were captured, after the KV cache had taken its part",
        "graphs keep private pools that lie outside of what was reckoned with",
    ),
    "serving": (
        "runtime_oom",
        "memory ran out while requests were served",
        "a step needed more than profiling had seen: prompt logprobs, media, long prompts, or a leak",
    ),
}


def _stage(facts: Facts) -> tuple[str, bool]:
    """The stage, and whether the text tells it; else what the figures look like."""
    stage, seen = facts.scanned.stage, facts.seen
    if stage in _STAGES and stage not in ("load", "unknown"):
        return stage, True
    for name, said in (
        ("says_sampler", "sampler"),
        ("says_graphs", "graphs"),
        ("says_loading", "load"),
        ("says_profile", "profile"),
    ):
        if name in seen:
            return said, True
    if stage == "load" and ("vllm_weights" in seen or "at_load" in seen):
        return "load", True
    if "says_serving" in seen or "vllm_ready" in seen:
        return "serving", "vllm_ready" in seen
    if facts.scanned.said in ("graphs", "profile", "serving"):
        return facts.scanned.said, False
    return _by_figures(facts), False


def _by_figures(facts: Facts) -> str:
    """A large request with much else free is a step's activation; a small one on a full GPU is a weight."""
    wanted, total = facts.wanted_bytes or 0, oom_total(facts) or 0
    allocated = facts.allocated_bytes or total - (oom_free(facts) or 0)
    if wanted >= 1 << 30:
        return "profile"
    if total and allocated > 0.9 * total:
        return "load"
    return "profile" if wanted > 400 << 20 else "load"
