"""Checks of the memory that an engine takes when it starts: utilization, graphs, profiling runs, neighbours.

Each docstring names the complaints, by project and issue.
"""

from __future__ import annotations

from math import floor

from memplan.catalog.rules import parse_release
from memplan.domain.emission import EmitSubject
from memplan.emit.finding import (
    Finding,
    engines_on_gpu,
    mended,
    noted,
    per_replica,
    pinned,
    refused,
    sequences,
    setting,
    step_size,
)
from memplan.records import replace
from memplan.units import GIB, MIB, format_gib

_MOST_UTILIZATION = 0.95
_SPARE_SHARE = 0.01  # of the card, for what comes and goes between the plan and the start
_UNIFIED_UTILIZATION = 0.85
_UNIFIED_SMALL = 0.7
_UNIFIED_SMALL_BYTES = 40 * GIB
_LOGPROB_BYTES = 6
_LOGPROB_RESERVE_BYTES = 4 * GIB
_SMALL_STEP = 2048
_WARM_UP_SEQS = 256
_SHARED_MEMORY_NOTE = "shared with the CPU"


def graph_capture(subject: EmitSubject) -> Finding | None:
    """Capturing CUDA graphs runs out of memory: utilization above 0.95, or graphs that the release does not charge.

    Source: vllm#19186, vllm#57475, vllm#11251, vllm#15598, sglang#39713.
    """
    utilization = _utilization(subject)
    if utilization is None or setting(subject, "enforce_eager") is True:
        return None
    budget = subject.budget
    held = budget.used_bytes - budget.group_bytes("activation_peak")
    free = _free_bytes(subject)
    if held > free:
        lower = _two_digits(utilization - (held - free) / budget.gpu_memory_bytes)
        reason = f"utilization {utilization:g} leaves {format_gib(free - held + budget.group_bytes('cuda_graph'))}"
        reason += f" for {format_gib(budget.group_bytes('cuda_graph'))} of CUDA graphs"
        return _lowered(subject, "graph-capture", reason, min(lower, _MOST_UTILIZATION))
    if utilization > _MOST_UTILIZATION:
        reason = f"utilization {utilization:g} leaves too little for what is not charged when CUDA graphs are captured"
        return _lowered(subject, "graph-capture", reason, _MOST_UTILIZATION)
    return None


def sampler_warm_up(subject: EmitSubject) -> Finding | None:
    """The sampler's warm-up runs with as many dummy requests as sequences are allowed, 1,024 on a large GPU.

    Source: vllm#15105, vllm#27508, vllm#14452, llm-d#787.
    """
    seqs = sequences(subject)
    if subject.engine != "vllm" or subject.settings.max_num_seqs is not None or seqs is None:
        return None
    enough = max(_WARM_UP_SEQS, per_replica(subject))
    if seqs <= enough:
        return None
    logits = format_gib(seqs * subject.spec.vocab_size * 4)
    reason = f"{seqs:,} sequences, the default on this GPU, warm the sampler up with {logits} of logits"
    return mended("sampler-warm-up", f"{reason}: {enough} sequences", replace(pinned(subject), max_num_seqs=enough))


def free_memory(subject: EmitSubject) -> Finding | None:
    """Less memory is free than utilization asks for: vLLM refuses to start.

    Source: vllm#20305, vllm#19125, pytorch#175666.
    """
    utilization = _utilization(subject)
    if utilization is None:
        return None
    total, free = subject.gpu.memory_bytes, _free_bytes(subject)
    context = min(subject.budget.group_bytes("outside_budget"), GIB)
    if utilization * total <= free - context:
        return None
    reason = (
        f"utilization {utilization:g} asks for {format_gib(utilization * total)}, {format_gib(free - context)} are free"
    )
    return _lowered(subject, "free-memory", reason, _two_digits((free - context) / total - _SPARE_SHARE))


def shared_gpu(subject: EmitSubject) -> Finding | None:
    """Several engines on one GPU take each other's memory for their own when they profile.

    Source: vllm#10533, vllm#14376, vllm#55827.
    """
    count = engines_on_gpu(subject)
    if count == 1:
        return None
    reason = f"{count} engines share each GPU: start one when the one before it answers"
    has_option = subject.engine == "vllm" and parse_release(subject.version) >= (0, 10, 2)
    if not has_option or setting(subject, "kv_cache_memory_bytes") is not None:
        return noted("shared-gpu", reason, "two that start at once measure each other")
    cache = subject.budget.group_bytes("kv_cache") // MIB * MIB
    given = f"{reason}; the KV cache is given outright, {format_gib(cache)}, so that none measures it"
    return mended("shared-gpu", given, replace(pinned(subject), kv_cache_memory_bytes=cache))


def media_profile(subject: EmitSubject) -> Finding | None:
    """The profiling run of a multimodal model holds the largest inputs of every kind at once.

    Source: vllm#20123, vllm#22173, vllm#18550, vllm#34209.
    """
    kinds = {media.modality for tower in subject.spec.towers for media in tower.media}
    asked = subject.settings
    if subject.engine != "vllm" or not kinds or asked.language_model_only or asked.media_per_prompt is not None:
        return None
    limits: dict[str, int] = {kind: 0 if kind == "video" and len(kinds) > 1 else 1 for kind in sorted(kinds)}
    words = ", ".join(f"{count} {kind}" for kind, count in limits.items())
    reason = f"no limit on media was given, and the profiling run reserves for the largest of each: {words} a prompt"
    return mended("media-profile", reason, replace(pinned(subject), media_per_prompt=limits))


def logprobs(subject: EmitSubject) -> Finding | None:
    """Prompt logprobs hold the logits of a whole step, which no profiling run sees.

    Source: vllm#5907, vllm#10325, vllm PR#52054.
    """
    tokens = step_size(subject)
    if not subject.settings.prompt_logprobs or tokens is None:
        return None
    if subject.engine != "vllm":
        return refused(
            "logprobs",
            f"the budget of {subject.engine} has no reserve for prompt logprobs",
            "leave --prompt-logprobs out, or use --engine vllm",
        )
    reserve = tokens * subject.spec.vocab_size * _LOGPROB_BYTES
    chunked = setting(subject, "enable_chunked_prefill") is not False
    if reserve <= _LOGPROB_RESERVE_BYTES or tokens <= _SMALL_STEP or not chunked:
        return None
    smaller = max(_SMALL_STEP, sequences(subject) or 0)
    reason = f"prompt logprobs of a step of {tokens:,} tokens take {format_gib(reserve)}: {smaller:,} tokens a step"
    return mended("logprobs", reason, replace(pinned(subject), max_num_batched_tokens=smaller))


def unified_memory(subject: EmitSubject) -> Finding | None:
    """The system lives in the same memory: what is free changes, and a high utilization ends other programs.

    Source: vllm#46307, vllm#48140, vllm#56824.
    """
    utilization = _utilization(subject)
    if utilization is None or _SHARED_MEMORY_NOTE not in subject.gpu.note:
        return None
    most = _UNIFIED_SMALL if subject.gpu.memory_bytes < _UNIFIED_SMALL_BYTES else _UNIFIED_UTILIZATION
    if utilization <= most:
        return None
    reason = f"{subject.gpu.name} shares its memory with the system, which needs more than {1 - utilization:.0%} of it"
    return _lowered(subject, "unified-memory", reason, most)


def _utilization(subject: EmitSubject) -> float | None:
    """vLLM's part of the card; None for other engines, whose parts are of something else, and where it is not used."""
    value = setting(subject, "gpu_memory_utilization")
    if subject.engine != "vllm" or setting(subject, "kv_cache_memory_bytes") is not None:
        return None
    return value if isinstance(value, float) else None


def _free_bytes(subject: EmitSubject) -> int:
    total = subject.gpu.memory_bytes
    return min(total, subject.settings.gpu_free_bytes or total)


def _two_digits(share: float) -> float:
    return floor(share * 100) / 100


def _lowered(subject: EmitSubject, check: str, reason: str, utilization: float) -> Finding:
    if utilization < 0.05:
        return refused(check, reason, "free the GPU, or use a larger one")
    settings = replace(subject.settings, gpu_memory_utilization=utilization)
    return mended(check, f"{reason}: utilization {utilization:g}", settings)
