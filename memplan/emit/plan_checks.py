"""Checks of what is asked of the cache and the model: lengths, sequences, shards, releases.

Each docstring names the complaints, by project and issue.
"""

from __future__ import annotations

import re

from memplan.domain.attention import LinearState
from memplan.domain.emission import EmitSubject
from memplan.domain.remedies import cheapest_remedy, flags_to_type
from memplan.emit import sizing
from memplan.emit.finding import (
    Finding,
    holds,
    mended,
    per_replica,
    pinned,
    refused,
    replicas,
    sequences,
    setting,
    step_size,
)
from memplan.records import replace
from memplan.units import round_up

# Engines whose requests draw blocks from a pool; others make the cache as large as it was asked for.
_POOLED = ("vllm", "sglang", "tensorrt-llm")
_STEP = 256


def context(subject: EmitSubject) -> Finding | None:
    """The cache is too small for the longest request: vLLM refuses to start.

    Source: vllm#2418, vllm#10517, QwenLM/Qwen3#295, deepseek-ai/DeepSeek-V2#83.
    """
    longest, asked = subject.budget.kv.max_context_tokens, sizing.context_tokens(subject)
    if subject.budget.kv.capacity_tokens is None or longest is None or longest >= asked:
        return None
    if longest == subject.spec.max_context_tokens and (subject.budget.kv.max_concurrency or 0) >= replicas(subject):
        return None  # more was asked for than the model was made for, and it has room
    reason = f"a request of {asked:,} tokens has no room in the KV cache, the longest that has is {longest:,}"
    if subject.settings.workload.context_tokens is None and longest >= 2 * _STEP:
        shorter = (longest - 1) // _STEP * _STEP
        workload = replace(subject.settings.workload, context_tokens=shorter)
        return mended("context", f"{reason}: context {shorter}", replace(pinned(subject), workload=workload))
    cheapest = cheapest_remedy(subject.budget)
    hint = f"try {flags_to_type(cheapest.change)}" if cheapest else f"use --context {max(1, longest)}"
    return refused("context", reason, hint)


def spare_block(subject: EmitSubject) -> Finding | None:
    """A request as long as the whole pool leaves no block to go on with: the scheduler waits for ever.

    Source: vllm#39734, vllm#52530, sglang#26248, sglang#14972.
    """
    kv, asked = subject.budget.kv, sizing.context_tokens(subject)
    if subject.engine not in _POOLED:
        return None
    if kv.max_concurrency is None or not kv.block_size or not kv.blocks or not kv.needed_bytes:
        return None
    one = kv.needed_bytes / per_replica(subject)
    block = subject.budget.group_bytes("kv_cache") / kv.blocks
    if subject.budget.group_bytes("kv_cache") - one >= block:
        return None
    reason = f"one request of {asked:,} tokens fills the whole KV cache and leaves no block to go on with"
    shorter = max(1, asked - 2 * kv.block_size)
    if subject.settings.workload.context_tokens is None:
        workload = replace(subject.settings.workload, context_tokens=shorter)
        return mended("spare-block", f"{reason}: context {shorter}", replace(pinned(subject), workload=workload))
    return refused("spare-block", reason, f"use --context {shorter}")


def state_blocks(subject: EmitSubject) -> Finding | None:
    """More sequences than recurrent states have room: the engine refuses, or stalls.

    Source: vllm#49064, vllm PR#38270, recipes#551, kaito#2319.
    """
    caches = [cache for layer, _ in subject.spec.distinct_layers() for cache in layer.caches]
    seqs = sequences(subject)
    if seqs is None or not any(isinstance(cache, LinearState) for cache in caches):
        return None
    room = holds(subject, subject.budget.kv.block_size or _STEP)
    if room is None or seqs <= room:
        return None
    if room < per_replica(subject):
        return refused(
            "state-blocks",
            f"the recurrent states of {per_replica(subject)} requests have no room, those of {room} have",
            "ask for fewer with --concurrency, or give the cache more memory",
        )
    reason = f"{seqs} sequences need a recurrent state each, and {room} have room: {room} sequences"
    return mended("state-blocks", reason, replace(pinned(subject), max_num_seqs=room))


def preemption(subject: EmitSubject) -> Finding | None:
    """More sequences are admitted than the cache holds: they are preempted and computed again, over and over.

    Engines queue what has no room and put back what outgrows the cache; none of them fails. So without a mean length
    the default is lowered only to what the cache holds of short requests, and a number that was given stays: an
    assumption of ours does not overrule it.
    Source: vllm#18115, vllm#42827, Tandemn-Labs/tandemn-system#11.
    """
    seqs, mean = sequences(subject), sizing.short_tokens(subject)
    given = subject.settings.max_num_seqs is not None
    if seqs is None or (given and subject.settings.workload.mean_tokens is None):
        return None
    room = holds(subject, mean.value)
    if room is None:
        return None
    limit = max(1, room, per_replica(subject))
    if seqs <= limit:
        return None
    reason = f"{seqs} sequences of {mean.value:,} tokens ({mean.why}) do not fit into the KV cache, {room} do"
    return mended("preemption", f"{reason}: {limit} sequences", replace(pinned(subject), max_num_seqs=limit))


def step_tokens(subject: EmitSubject) -> Finding | None:
    """A step has fewer tokens than sequences, or than a prompt that is not cut: the engine refuses, or never runs it.

    Source: verl#7624, vllm#33109, unsloth-zoo#1211.
    """
    tokens, seqs, asked = step_size(subject), sequences(subject), sizing.context_tokens(subject)
    if tokens is None:
        return None
    if seqs is not None and tokens < seqs:
        reason = f"a step of {tokens:,} tokens cannot take {seqs:,} sequences"
        raised = round_up(seqs, _STEP)
        settings = replace(pinned(subject), max_num_batched_tokens=raised)
        return mended("step-tokens", f"{reason}: {raised:,} tokens", settings)
    if setting(subject, "enable_chunked_prefill") is False and tokens < asked and subject.spec.is_generative:
        reason = f"a prompt of {asked:,} tokens does not fit into a step of {tokens:,}, and prefill is not chunked"
        raised = round_up(asked, _STEP)
        settings = replace(pinned(subject), max_num_batched_tokens=raised)
        return mended("step-tokens", f"{reason}: {raised:,} tokens", settings)
    return None


def release(subject: EmitSubject) -> Finding | None:
    """Releases account for memory differently: a file is for the one that its budget was computed for.

    Source: vllm#30515, vllm#45178, vllm#27951.
    """
    if subject.version == subject.budget.engine_version and subject.version in subject.checked_for:
        return None
    return refused(
        "release",
        f"the budget is for {subject.budget.engine_version}, the file would be for {subject.version}",
        f"estimate again with --engine {subject.engine}@{subject.version}",
    )


def shards(subject: EmitSubject) -> Finding | None:
    """Tensor parallelism that does not divide the heads, or cuts through a group of quantized weights.

    Source: vllm#21695, vllm#5675, vllm#1816.
    """
    tensor = subject.settings.layout.tensor
    problem = _misfit(subject, tensor)
    if problem is None:
        return None
    legal = [size for size in range(tensor - 1, 0, -1) if tensor % size == 0 and _misfit(subject, size) is None]
    rest = f" --pp {tensor // legal[0]}" if legal else ""
    return refused("shards", problem, f"use --tp {legal[0] if legal else 1}{rest}")


def _misfit(subject: EmitSubject, tensor: int) -> str | None:
    group = _group_size(subject.spec.quantization or "")
    for layer, _ in subject.spec.distinct_layers():
        if layer.num_heads % tensor:
            return f"{layer.num_heads} attention heads cannot be spread over {tensor} ranks"
        if group is None or layer.mlp is None or tensor == 1:
            continue
        widths = [layer.mlp.shared_intermediate]
        if not (layer.mlp.num_experts and subject.settings.layout.expert):
            widths.append(layer.mlp.intermediate)
        for width in widths:
            if width % (group * tensor):
                return f"an MLP {width:,} wide, quantized in groups of {group}, cannot be cut into {tensor} parts"
    return None


def _group_size(scheme: str) -> int | None:
    """The group of a scheme's name: 128 of `awq-int4-g128` and of `fp8-block`; None for scales per tensor or row."""
    found = re.search(r"-g(\d+)$", scheme)
    if found:
        return int(found[1])
    return 128 if scheme == "fp8-block" else None
