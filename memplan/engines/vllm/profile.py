"""What vLLM's profiling run measures: the activation peak, what lies outside torch, and the CUDA graphs.

Before it sizes the cache, vLLM runs the largest step it allows on dummy tokens and samples for the largest batch. The
peak is the larger of the two; for a large vocabulary and many sequences it is the sampler.

The sampler's 38 bytes per logit (sequences x vocabulary) are what torch's sort holds at once: the logits in 16 bits
(2) and in float32 (4), the sorted values (4) and their int64 indices (8), the int64 index it sorts along (8) and the
radix sort's second buffer for values and indices (12). The fused kernels hold 14: the logits (2 + 4), a masked copy
(4) and probabilities (4).

Source: vllm/v1/sample/sampler.py and ops/topk_topp_sampler.py, vllm/model_executor/layers/sampler.py, PyTorch's
aten/src/ATen/native/cuda/Sort.cu. Checked by: benchmarks/vllm/score.py on recorded runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.budget.activations import ForwardRules, forward_peak_bytes, media_tower_bytes, sampler_peak_bytes
from memplan.catalog.rules import Rules
from memplan.domain.model import Layer, MediaInput, ModelSpec
from memplan.engines.vllm.settings import VllmSettings
from memplan.units import GIB, MIB, ceil_div, round_up

_SORT_BYTES_PER_LOGIT = 38
_FUSED_BYTES_PER_LOGIT = 14
_CUBLAS_WORKSPACE_BYTES = 8 * MIB + 128 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPeak:
    """The peak and which part of the run reached it."""

    size_bytes: int
    cause: str
    forward_bytes: int
    sampler_bytes: int
    media_bytes: int


def activation_peak(
    spec: ModelSpec, layers: tuple[Layer, ...], settings: VllmSettings, rules: Rules, *, samples: bool
) -> ActivationPeak:
    """The activation peak of one rank; `samples` is true on the last pipeline stage."""
    ranks, element_bytes = settings.layout.tensor, settings.dtype.bits // 8
    tokens = settings.batched_tokens
    hidden_bytes = tokens * spec.hidden_size * element_bytes
    forward = forward_peak_bytes(layers, spec, tokens, ranks, element_bytes, forward_rules(settings, rules))
    sampler = 0
    if samples and spec.is_generative:
        sequences = min(settings.max_num_seqs, tokens)
        vocab = round_up(spec.vocab_size, 64)
        sampler = hidden_bytes + sampler_peak_bytes(sequences, vocab, bytes_per_logit(settings, rules))
    media = media_peak_bytes(spec, settings, element_bytes)
    parts = {
        "forward pass": forward + media.kept_bytes,
        "sampler": sampler + media.kept_bytes,
        "media tower": media.peak_bytes,
    }
    cause = max(parts, key=lambda name: parts[name])
    return ActivationPeak(
        size_bytes=parts[cause] + _CUBLAS_WORKSPACE_BYTES,
        cause=cause,
        forward_bytes=forward,
        sampler_bytes=sampler,
        media_bytes=media.peak_bytes,
    )


def forward_rules(settings: VllmSettings, rules: Rules) -> ForwardRules:
    """How this release runs a layer."""
    if settings.generation == "v1" and not settings.eager:
        return ForwardRules(hidden_copies=2.0, expert_chunk_tokens=_expert_chunk(rules))
    copies = 3.0 if rules.release < (0, 6, 5) else 4.0
    shares = rules.release >= (0, 8, 0)
    return ForwardRules(hidden_copies=copies, expert_chunk_tokens=_expert_chunk(rules), shares_expert_buffers=shares)


def _expert_chunk(rules: Rules) -> int:
    """VLLM_FUSED_MOE_CHUNK_SIZE: 65,536 tokens in the first releases, then 32,768, then 16,384."""
    if rules.release < (0, 6, 0):
        return 65536
    return 32768 if rules.release < (0, 12, 0) else 16384


def bytes_per_logit(settings: VllmSettings, rules: Rules) -> float:
    """Bytes the sampler holds per sequence and vocabulary entry at its peak."""
    if settings.generation == "v1" and rules["sampler_v1"] == "fused":
        return _FUSED_BYTES_PER_LOGIT
    return _SORT_BYTES_PER_LOGIT


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPeak:
    """The towers' own peak, and the encoder outputs that stay while the language model is profiled."""

    peak_bytes: int
    kept_bytes: int


def media_peak_bytes(spec: ModelSpec, settings: VllmSettings, element_bytes: int) -> MediaPeak:
    """Profiling images, videos and audio: as many of the costliest input as a step's token budget holds."""
    inputs = [media for tower in spec.towers for media in tower.media]
    if not inputs:
        return MediaPeak(peak_bytes=0, kept_bytes=0)
    costliest = max(inputs, key=lambda media: media.max_tokens)
    items = _num_items(costliest, settings)
    tower = media_tower_bytes(
        costliest.patches,
        costliest.hidden_size,
        costliest.intermediate_size,
        items,
        element_bytes,
        settings.layout.tensor,
    )
    kept = costliest.max_tokens * items * spec.hidden_size * element_bytes
    return MediaPeak(peak_bytes=tower + kept, kept_bytes=kept)


def _num_items(media: MediaInput, settings: VllmSettings) -> int:
    """Inputs in the profiling batch. V1: the encoder budget over one input's tokens; V0: one for each dummy sequence
    that has room.
    """
    budget = max(settings.batched_tokens, media.max_tokens)
    if settings.generation == "v1":
        return max(1, min(budget // max(1, media.max_tokens), settings.max_num_seqs))
    return max(1, min(settings.max_num_seqs, settings.batched_tokens // max(1, media.max_tokens)))


def capture_sizes(settings: VllmSettings, rules: Rules) -> int:
    """How many batch sizes are captured as CUDA graphs."""
    if settings.eager:
        return 0
    if settings.generation == "v0":
        limit = min(settings.max_num_seqs, 256)
        return sum(size <= limit for size in (1, 2, 4, *range(8, 257, 8))) or 1
    limit = min(512, settings.max_num_seqs * 2 if rules.release >= (0, 11, 1) else 512, max(1, settings.batched_tokens))
    sizes = (
        [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]
        if rules.release >= (0, 11, 1)
        else [1, 2, 4, *range(8, 513, 8)]
    )
    return sum(size <= limit for size in sizes) or 1


def graph_bytes(num_layers: int, settings: VllmSettings, rules: Rules) -> int:
    """CUDA graphs of one rank: a fixed cost per captured piece, and NCCL's graph buffers past one rank."""
    sizes = capture_sizes(settings, rules)
    if not sizes:
        return 0
    pieces = sizes * (num_layers + 1)
    if settings.generation == "v0":
        return round(0.012 * GIB * sizes * max(1, num_layers / 40))
    per_piece = 0.28 * MIB
    return round(pieces * per_piece) + (round(1.2 * GIB) if settings.layout.tensor > 1 else 0)


def non_torch_bytes(settings: VllmSettings, rules: Rules) -> int:
    """What lies outside torch and is charged to the budget: context, cuBLAS, NCCL, by the release's way of
    accounting.
    """
    accounting = rules["accounting_v1"] if settings.generation == "v1" else rules["accounting"]
    ranks = settings.layout.tensor * settings.layout.pipeline
    context = round(0.45 * GIB) if accounting in ("device", "allocated") else 0
    own = round(0.09 * GIB)
    if ranks == 1:
        return context + own
    if accounting == "after_nccl":
        return context + round(0.25 * GIB)
    nccl = 0.7 * min(2.0, float(ceil_div(settings.layout.tensor, 2)) ** 0.5)
    return context + own + round(nccl * GIB)
