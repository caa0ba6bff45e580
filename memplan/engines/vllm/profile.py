"""What vLLM's profiling run measures: the activation peak.

Before it sizes the cache, vLLM runs the largest step it allows on dummy tokens and samples for the largest batch. The
peak is the larger of the two; for a large vocabulary and many sequences it is the sampler.

The sampler's 38 bytes per logit (sequences x vocabulary) are what torch's sort holds at once: the logits in 16 bits
(2) and in float32 (4), the sorted values (4) and their int64 indices (8), the int64 index it sorts along (8) and the
radix sort's second buffer for values and indices (12). The fused kernels hold 14: the logits (2 + 4), a masked copy
(4) and probabilities (4). Until 0.5.4 the logits were sorted in 16 bits, which held 30.

Source: vllm/v1/sample/sampler.py and ops/topk_topp_sampler.py, vllm/model_executor/layers/sampler.py, PyTorch's
aten/src/ATen/native/cuda/Sort.cu. Checked by: benchmarks/vllm/score.py on recorded runs.
"""

from __future__ import annotations

from memplan.budget.activations import ForwardRules, forward_peak_bytes, media_tower_bytes, sampler_peak_bytes
from memplan.catalog.rules import Rules
from memplan.domain.attention import CrossAttention
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.domain.tensors import Role
from memplan.engines.vllm.lanes import has_lanes, lanes_peak_bytes
from memplan.engines.vllm.settings import VllmSettings
from memplan.engines.vllm.workspaces import cublas_bytes, shared_workspace_bytes, triton_sampler_bytes
from memplan.records import dataclass
from memplan.units import MIB, round_up

_SORT_BYTES_PER_LOGIT = 38
_SORT_16_BYTES_PER_LOGIT = 30
_FUSED_BYTES_PER_LOGIT = 14
_RAW_BYTES_PER_LOGIT = 2
_PROMPT_LOGPROB_BYTES = 6
_TRITON_LEAST_SEQUENCES = 8
_SEQUENCES_V0 = 256
# Pixels in 16 bits and three colours behind one patch of a vision tower, 14 x 14.
_PIXEL_BYTES_PER_PATCH = 14 * 14 * 3 * 2
# Hidden states that a compiled layer keeps beside its widest projection (residual, input, output), fitted.
_COPIES_V1 = 3.6


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPeak:
    """The peak and which part of the run reached it.

    `least_bytes` is the peak if the sampler ran on FlashInfer's kernels, or the engine was V0, where that is open;
    with an image in every sequence, that of one sequence where their number was not told.
    """

    size_bytes: int
    least_bytes: int
    cause: str
    formula: str
    forward_bytes: int
    sampler_bytes: int
    media_bytes: int


def activation_peak(
    spec: ModelSpec,
    layers: tuple[Layer, ...],
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: VllmSettings,
    rules: Rules,
    *,
    kept_mib: float,
    is_first: bool,
    is_last: bool,
) -> ActivationPeak:
    """The activation peak of one rank. `kept_mib` is what V1's small buffers hold throughout, fitted."""
    ranks, element_bytes = settings.layout.tensor, settings.dtype.bits // 8
    tokens = settings.batched_tokens
    hidden_bytes = tokens * spec.hidden_size * element_bytes
    workspace = shared_workspace_bytes(layers, spec, gpu, settings, rules)
    forward = forward_peak_bytes(
        layers, spec, tokens, ranks, element_bytes, forward_rules(spec, settings, rules, in_workspace=workspace > 0)
    )
    if has_lanes(layers):
        forward = max(forward, lanes_peak_bytes(layers, spec, settings))
    media = media_peak(spec, asked, settings, element_bytes) if is_first else MediaPeak()
    received = 0 if is_first else 2 * hidden_bytes
    buffers = round(kept_mib * MIB) if settings.generation == "v1" else 0
    kept = cublas_bytes(gpu) + buffers + workspace + media.kept_bytes + received
    sequences = min(settings.max_num_seqs, tokens, media.max_sequences or tokens) * (1 + asked.num_speculative_tokens)
    sampler = fused = 0
    path = sampler_path(gpu, asked, settings, rules, sequences)
    if is_last and spec.is_generative:
        vocab = round_up(spec.vocab_size, 64)
        gathered = sequences * spec.hidden_size * element_bytes
        sampler = hidden_bytes + gathered + _sampler_bytes(path, gpu, sequences, vocab)
        fused = hidden_bytes + gathered + _sampler_bytes("flashinfer", gpu, sequences, vocab)
    if asked.prompt_logprobs:
        sampler += round(tokens * spec.vocab_size * _PROMPT_LOGPROB_BYTES)
    parts = {
        "forward pass": (forward, f"{tokens:,} tokens x the widest layer"),
        "sampler": (sampler, f"{sequences:,} sequences x {spec.vocab_size:,} logits x {_PER_LOGIT[path]} B"),
        "media tower": (media.peak_bytes - media.kept_bytes, f"{media.items} x the largest input"),
    }
    cause = max(parts, key=lambda name: parts[name][0])
    if path == "sort" and settings.generation == "v1":
        sampler = fused
    if rules["generation"] == "mixed" and asked.max_num_seqs is None:
        sampler = min(sampler, sampler * _SEQUENCES_V0 // sequences)
    least_media = media.peak_bytes - media.kept_bytes
    if is_crossing(spec) and asked.max_num_seqs is None and media.items:
        least_media //= media.items  # whoever serves such a model lowers the number of sequences
    least = max(forward, sampler, least_media)
    return ActivationPeak(
        size_bytes=parts[cause][0] + kept,
        least_bytes=least + kept,
        cause=cause,
        formula=parts[cause][1],
        forward_bytes=forward,
        sampler_bytes=parts["sampler"][0],
        media_bytes=media.peak_bytes,
    )


_PER_LOGIT = {
    "sort": _SORT_BYTES_PER_LOGIT,
    "sort in 16 bits": _SORT_16_BYTES_PER_LOGIT,
    "triton": _FUSED_BYTES_PER_LOGIT,
    "flashinfer": _FUSED_BYTES_PER_LOGIT,
    "raw": _RAW_BYTES_PER_LOGIT,
}


def sampler_path(gpu: GpuSpec, asked: ServingSettings, settings: VllmSettings, rules: Rules, sequences: int) -> str:
    """Which code the profiling run samples with: a sort, in 16 bits or not, triton, flashinfer, or raw logits without
    sampling.
    """
    if settings.generation == "v0":
        return "sort in 16 bits" if rules["sorts_16_bits"] else "sort"
    if settings.runner == "v2" and rules["sampler_v2"] == "raw":
        return "raw"
    chosen = asked.engine_options.get("flashinfer_sampler")
    if chosen is True:
        return "flashinfer"
    path = str(rules["sampler_v1"])
    if path == "flashinfer" and (chosen is False or gpu.vendor != "nvidia" or (gpu.cuda_capability or 9.0) < 7.5):
        path = "triton"
    if path == "triton" and sequences < _TRITON_LEAST_SEQUENCES:
        return "sort"
    return path


def _sampler_bytes(path: str, gpu: GpuSpec, sequences: int, vocab_size: int) -> int:
    size = sampler_peak_bytes(sequences, vocab_size, _PER_LOGIT[path])
    return size + (triton_sampler_bytes(gpu, sequences, vocab_size) if path == "triton" else 0)


def forward_rules(spec: ModelSpec, settings: VllmSettings, rules: Rules, *, in_workspace: bool) -> ForwardRules:
    """How this release runs a layer. Experts that work in the shared workspace are counted there."""
    is_compiled = settings.generation == "v1" and not settings.eager
    unpacks = unpacks_weights(spec)
    copies = _COPIES_V1 if is_compiled else 3.0 if rules.release < (0, 6, 5) else 4.0
    if settings.generation == "v0" and settings.layout.tensor > 1 and rules.release >= (0, 7, 0):
        copies += 1  # the all-reduce writes a tensor of its own
    return ForwardRules(
        hidden_copies=copies,
        expert_chunk_tokens=_expert_chunk(rules),
        shares_expert_buffers=is_compiled or rules.release >= (0, 8, 0),
        in_workspace=in_workspace,
        unpacks=unpacks,
        casts=unpacks and settings.dtype is not DType.BF16,
    )


def unpacks_weights(spec: ModelSpec) -> bool:
    """Whether projections unpack their weights to BF16 first, as bitsandbytes' 4-bit types do.

    Source: vllm/model_executor/layers/quantization/bitsandbytes.py, 0.5 to 0.33: every shard of a projection is
    multiplied by itself and copied into the output, which is cast to the model's type at last.
    """
    return (spec.quantization or "").startswith(("bnb-nf4", "bnb-fp4"))


def _expert_chunk(rules: Rules) -> int:
    """VLLM_FUSED_MOE_CHUNK_SIZE: 65,536 tokens in the first releases, then 32,768, then 16,384."""
    if rules.release < (0, 6, 0):
        return 65536
    return 32768 if rules.release < (0, 12, 0) else 16384


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
    elif is_crossing(spec):
        items = settings.max_num_seqs
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
    if is_crossing(spec):  # outputs of several layers, side by side, until the projector has them
        return MediaPeak(
            peak_bytes=tower + media.patches_at(context) * items * _projected_width(spec) * element_bytes, items=items
        )
    kept = tokens * items * spec.hidden_size * element_bytes
    kept += media.patches_at(context) * items * _PIXEL_BYTES_PER_PATCH
    return MediaPeak(peak_bytes=tower + kept, kept_bytes=kept, items=items, max_sequences=sequences)


def is_crossing(spec: ModelSpec) -> bool:
    """Whether text attends to images in layers of their own (Llama 3.2 Vision): every dummy sequence of V0 has one.

    Source: EncoderDecoderModelRunner.profile_run (vllm/worker/enc_dec_model_runner.py, 0.6 to 0.10).
    """
    caches = (cache for layer in spec.layers for cache in layer.caches)
    return bool(spec.towers) and any(isinstance(cache, CrossAttention) for cache in caches)


def _projected_width(spec: ModelSpec) -> int:
    """How wide a vector is that the projector takes."""
    parts = (part for tower in spec.towers for part in tower.tensors)
    return max((part.shape[-1] for part in parts if part.role is Role.PROJECTOR and len(part.shape) == 2), default=0)
