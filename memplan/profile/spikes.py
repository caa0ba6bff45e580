"""Short-lived tensors that make a peak: which they are, and what makes them smaller."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.domain.timeline import Finding, LiveTensor, MemoryTimeline, PhaseMemory
from memplan.units import MIB, format_gib

_STATE = frozenset(("weights", "kv_cache", "gradients", "optimizer_state"))
_HEADS = ("lm_head", "embed_out", "output_projection", "cls.predictions", "decoder")
_LOSSES = ("log_softmax", "nll_loss", "cross_entropy")
_LEAST_VOCABULARY = 16_000
# A spike is worth a word from this size and this part of the peak on, a kind of tensor from this part of the spike.
_LEAST_BYTES = 64 * MIB
_LEAST_OF_PEAK = 0.03
_LEAST_OF_SPIKE = 0.25


def spikes(timeline: MemoryTimeline) -> Iterator[Finding]:
    """One finding per kind of tensor that makes the fullest moment of a phase, in its fullest run."""
    said: set[str] = set()
    for phase in sorted(timeline.phases, key=lambda each: -each.peak.allocated_bytes):
        lasting = sum(size for name, size in phase.by_category.items() if name in _STATE)
        spike = phase.peak.allocated_bytes - max(lasting, phase.before.allocated_bytes)
        if spike < max(_LEAST_BYTES, _LEAST_OF_PEAK * timeline.peak.peak.allocated_bytes):
            continue
        for kind, found in _by_kind(phase, timeline):
            size = sum(tensor.size_bytes for tensor in found)
            if kind in said or size < _LEAST_OF_SPIKE * spike:
                continue
            said.add(kind)
            yield _finding(kind, phase, found, size, spike)


def _by_kind(phase: PhaseMemory, timeline: MemoryTimeline) -> Iterator[tuple[str, list[LiveTensor]]]:
    kinds: dict[str, list[LiveTensor]] = {}
    for tensor in phase.largest:
        if tensor.category not in _STATE:
            kinds.setdefault(_kind(tensor, phase, timeline), []).append(tensor)
    for kind, found in kinds.items():
        if kind:
            yield kind, found


def _kind(tensor: LiveTensor, phase: PhaseMemory, timeline: MemoryTimeline) -> str:
    """What a tensor is, by its shape and by who made it; nothing where no advice is known."""
    shape, operator, module = tensor.shape, tensor.operator, tensor.module.rpartition(".")[2]
    is_wide = bool(shape) and shape[-1] >= _LEAST_VOCABULARY
    if is_wide and (module in _HEADS or not tensor.module or any(word in operator for word in _LOSSES)):
        return "logits"
    if len(shape) >= 3 and shape[-1] > 1 and shape[-2] > 1 and _are_scores(tensor, timeline):
        return "attention-scores"
    if "_foreach" in operator or (phase.phase == "optimizer" and tensor.category in ("unknown", "activations")):
        return "optimizer-temporaries"
    if phase.phase in ("prefill", "generate") and _tokens(timeline) > 1 and _tokens(timeline) in shape:
        return "prefill-chunk"
    return ""


def _are_scores(tensor: LiveTensor, timeline: MemoryTimeline) -> bool:
    """Whether a tensor has a side of queries and a side of keys."""
    tokens, shape = _tokens(timeline), tensor.shape
    if "softmax" in tensor.operator:
        return True
    if "att" not in tensor.module.rpartition(".")[2].lower():
        return False
    return tokens > 1 and shape[-2] == tokens and (shape[-1] == tokens or (len(shape) == 4 and shape[-1] > tokens))


def _tokens(timeline: MemoryTimeline) -> int:
    found = timeline.settings.get("prompt_tokens")
    return found if isinstance(found, int) else 0


def _finding(kind: str, phase: PhaseMemory, found: list[LiveTensor], size: int, spike: int) -> Finding:
    first = max(found, key=lambda tensor: tensor.size_bytes)
    trains = phase.phase in ("forward", "backward")
    title, mend = {
        "logits": (
            "logits of all positions make the peak" if trains or first.shape[-2:-1] != (1,) else "logits make the peak",
            "compute the loss in parts of the sequence, or with a fused linear cross entropy that never holds them"
            if trains
            else "ask for the last position alone: logits_to_keep=1",
        ),
        "attention-scores": (
            "scores of attention are held whole, and grow with the square of the length",
            "use a fused kernel: attn_implementation=sdpa or flash_attention_2 (--attention flash)",
        ),
        "optimizer-temporaries": (
            "the optimizer's step holds temporaries of many parameters at once",
            "fused=True updates in place; foreach=False makes one parameter's temporaries at a time",
        ),
        "prefill-chunk": (
            "the whole prompt at once makes the peak",
            "cut the prefill: prefill_chunk_size in generate, or a smaller batch; the peak falls with the part",
        ),
    }[kind]
    who = f" by {first.operator}" if first.operator else ""
    whose = f" in {first.module}" if first.module else ""
    where = f" ({first.where})" if first.where else ""
    return Finding(
        code=kind,
        title=f"{phase.phase}: {title}",
        evidence=f"{format_gib(size)} of the {format_gib(spike)} above what stays, made{who}{whose}{where}",
        mend=mend,
        severity="warning",
    )
