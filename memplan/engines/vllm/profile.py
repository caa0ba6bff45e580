"""What vLLM's profiling run measures: the activation peak.

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

from memplan.budget.activations import ForwardRules, forward_peak_bytes, media_tower_bytes, sampler_peak_bytes
from memplan.catalog.rules import Rules
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass
from memplan.units import MIB, round_up

_SORT_BYTES_PER_LOGIT = 38
_FUSED_BYTES_PER_LOGIT = 14
_PROMPT_LOGPROB_BYTES = 6
_CUBLAS_WORKSPACE_BYTES = 8 * MIB + 128 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPeak:
    """The peak and which part of the run reached it."""

    size_bytes: int
    cause: str
    formula: str
    forward_bytes: int
    sampler_bytes: int
    media_bytes: int


def activation_peak(
    spec: ModelSpec,
    layers: tuple[Layer, ...],
    asked: ServingSettings,
    settings: VllmSettings,
    rules: Rules,
    *,
    samples: bool,
) -> ActivationPeak:
    """The activation peak of one rank; `samples` is true on the last pipeline stage."""
    ranks, element_bytes = settings.layout.tensor, settings.dtype.bits // 8
    tokens = settings.batched_tokens
    forward = forward_peak_bytes(layers, spec, tokens, ranks, element_bytes, forward_rules(settings, rules))
    media = media_peak(spec, asked, settings, element_bytes)
    sequences = min(settings.max_num_seqs, tokens, media.max_sequences or tokens) * (1 + asked.num_speculative_tokens)
    per_logit = bytes_per_logit(settings, rules)
    sampler = 0
    if samples and spec.is_generative:
        hidden_bytes = tokens * spec.hidden_size * element_bytes
        sampler = hidden_bytes + sampler_peak_bytes(sequences, round_up(spec.vocab_size, 64), per_logit)
    if asked.prompt_logprobs:
        sampler += round(tokens * spec.vocab_size * _PROMPT_LOGPROB_BYTES)
    parts = {
        "forward pass": (forward + media.kept_bytes, f"{tokens:,} tokens x the widest layer"),
        "sampler": (
            sampler + media.kept_bytes,
            f"{sequences:,} sequences x {spec.vocab_size:,} logits x {per_logit:g} B",
        ),
        "media tower": (media.peak_bytes, f"{media.items} x the largest input"),
    }
    cause = max(parts, key=lambda name: parts[name][0])
    return ActivationPeak(
        size_bytes=parts[cause][0] + _CUBLAS_WORKSPACE_BYTES,
        cause=cause,
        formula=parts[cause][1],
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
    """The towers' own peak, and the encoder outputs that stay while the language model is profiled.

    `max_sequences` bounds the dummy batch where the release gives every dummy sequence a whole input; 0 for no bound.
    """

    peak_bytes: int = 0
    kept_bytes: int = 0
    items: int = 0
    max_sequences: int = 0


def media_peak(spec: ModelSpec, asked: ServingSettings, settings: VllmSettings, element_bytes: int) -> MediaPeak:
    """Profiling images, videos and audio: as many of the costliest input as a step's token budget holds.

    Source: MultiModalBudget (V1, vllm/v1/worker/utils.py); GPUModelRunner.profile_run (V0,
    vllm/worker/model_runner.py).
    """
    limits = asked.media_per_prompt or {}
    context = settings.context_tokens
    inputs = [
        media
        for tower in spec.towers
        for media in tower.media
        if limits.get(media.modality, 1) > 0 and not (media.modality == "video" and settings.generation == "v0")
    ]
    if not inputs:
        return MediaPeak()
    media = max(inputs, key=lambda each: each.tokens_at(context))
    tokens = max(1, media.tokens_at(context))
    sequences = 0
    if settings.generation == "v1":
        per_prompt = limits.get(media.modality, 999)
        budget = max(settings.batched_tokens, tokens)
        items = max(1, min(budget // tokens, settings.max_num_seqs * per_prompt))
    else:
        sequences = max(1, min(settings.max_num_seqs, settings.batched_tokens // tokens))
        items = sequences
    tower = media_tower_bytes(
        media.patches_at(context),
        media.hidden_size,
        media.intermediate_size,
        items,
        element_bytes,
        settings.layout.tensor,
    )
    kept = tokens * items * spec.hidden_size * element_bytes
    return MediaPeak(peak_bytes=tower + kept, kept_bytes=kept, items=items, max_sequences=sequences)
