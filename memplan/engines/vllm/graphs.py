"""CUDA graphs of one rank: what a release charges for them before it sizes the cache, and what they hold in the end.

From 0.18 on vLLM captures the two largest graphs of each mode on trial and extrapolates: the larger first capture, and
the second capture times the graphs that are left. The first full graph holds the split buffers of FlashAttention 3 on
Hopper, the first piecewise one the intermediate results of the largest batch; every further one some driver memory for
each of its kernels, which grows with the layers. From 0.20 on the estimate is charged to the budget. The second model
runner estimated nothing until 0.29.

Source: profile_cudagraph_memory in vllm/v1/worker/gpu_model_runner.py (0.18 to 0.33) and
vllm/v1/worker/gpu/cudagraph_utils.py (0.29 to 0.33). Sizes per graph are fitted, see vllm_fitted.yaml.
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.attention import LatentAttention, LinearState
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.engines.vllm.fitted import Fitted
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass
from memplan.units import MIB, ceil_div

_SIZES_V0 = (1, 2, 4, *range(8, 257, 8))
_SIZES_V1 = (1, 2, 4, *range(8, 513, 8))
_SIZES_TIERED = (1, 2, 4, *range(8, 256, 8), *range(256, 1025, 16))
_LARGEST = 512
# Kernels of one decoding step under V0: of 40 dense layers, and of the halves of a layer, counted in llama.py,
# mixtral.py and deepseek_v2.py of 0.7.3. Latents are projected down and up and moved about; DeepSeek's router is
# written in torch, and its matrices in FP8 blocks take a kernel more each.
_KERNELS_V0 = 40 * 12
_ATTENTION_V0, _LATENT_V0 = 7, 19
_DENSE_V0, _ROUTED_V0, _GROUPED_V0 = 5, 15, 38
# FlashAttention 3 splits the keys of a decoding step at most so often, and keeps a float32 result of every split.
_FLASH_SPLITS = 32
# Models whose masks FlashAttention does not run: they decode with other kernels, without split buffers.
_OTHER_KERNELS = ("gemma3", "gemma4", "gpt_oss")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphMemory:
    """`charged_bytes` are taken off the budget; `held_bytes` is what the captured graphs hold when serving starts.

    `estimate_bytes` is what releases from 0.18 on log as their estimate, charged or not.
    """

    estimate_bytes: int = 0
    charged_bytes: int = 0
    held_bytes: int = 0
    count: int = 0


def graph_memory(
    spec: ModelSpec, layers: tuple[Layer, ...], gpu: GpuSpec, settings: VllmSettings, rules: Rules, fitted: Fitted
) -> GraphMemory:
    """Return the graph memory of one rank that runs `layers`."""
    if settings.eager or not layers:
        return GraphMemory()
    if settings.generation == "v0":
        count = _at_most(_SIZES_V0, settings.max_num_seqs) * _queues_v0(settings, rules)
        kernels = sum(map(_kernels_v0, layers))
        held = round(count * fitted.graph_v0_mib * kernels / _KERNELS_V0 * MIB)
        return GraphMemory(held_bytes=held, count=count)
    pieces, full = capture_sizes(settings, rules)
    estimate = _estimate(spec, layers, gpu, settings, fitted, pieces, full)
    held = round(estimate * fitted.graph_held_share) + round(fitted.graph_held_mib * MIB)
    charged = estimate if _is_charged(gpu, settings, rules) else 0
    return GraphMemory(estimate_bytes=estimate, charged_bytes=charged, held_bytes=held, count=len(pieces) + len(full))


def _queues_v0(settings: VllmSettings, rules: Rules) -> int:
    """V0 captures every batch size once for every queue of requests, and has one for every pipeline stage.

    Source: capture_model of vllm/worker/model_runner.py, 0.5.1 to 0.10.
    """
    return settings.layout.pipeline if rules["splits_by_stage"] else 1


def _kernels_v0(layer: Layer) -> int:
    is_latent = any(isinstance(cache, LatentAttention) for cache in layer.caches)
    attention = _LATENT_V0 if is_latent else _ATTENTION_V0
    if layer.mlp and layer.mlp.num_experts:
        return attention + (_GROUPED_V0 if is_latent else _ROUTED_V0)
    return attention + _DENSE_V0


def capture_sizes(settings: VllmSettings, rules: Rules) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The batch sizes that are captured in pieces between attention layers, and as a whole for decoding.

    Source: VllmConfig._set_cudagraph_sizes, 0.8 to 0.33; CUDAGraphMode.FULL_AND_PIECEWISE became the default in 0.11.0.
    """
    release = rules.release
    per_request = 1 + settings.speculative_tokens if release >= (0, 13, 0) else 1
    largest = 2 * _LARGEST if release >= (0, 28, 0) and settings.gpu_family == "blackwell" else _LARGEST
    limit = min(largest, settings.batched_tokens)
    if release >= (0, 10, 0):
        limit = min(limit, 2 * settings.max_num_seqs * per_request)
    sizes = {size for size in (_SIZES_TIERED if release >= (0, 11, 1) else _SIZES_V1) if size <= limit}
    if release >= (0, 20, 1) and settings.batched_tokens <= limit:
        sizes.add(settings.batched_tokens)
    if release >= (0, 29, 0) and settings.max_num_seqs <= limit:
        sizes.add(settings.max_num_seqs)
    pieces = tuple(sorted(sizes)) or (1,)
    decoding = settings.max_num_seqs * per_request
    return pieces, tuple(size for size in pieces if size <= decoding) if release >= (0, 11, 0) else ()


def _is_charged(gpu: GpuSpec, settings: VllmSettings, rules: Rules) -> bool:
    if not rules["graphs_in_budget"] or (gpu.vendor == "amd" and rules.release < (0, 26, 0)):
        return False
    return settings.runner == "v1" or bool(rules["graphs_in_budget_v2"])


def _estimate(
    spec: ModelSpec,
    layers: tuple[Layer, ...],
    gpu: GpuSpec,
    settings: VllmSettings,
    fitted: Fitted,
    pieces: tuple[int, ...],
    full: tuple[int, ...],
) -> int:
    """The larger first capture, and the second of each mode for every further graph."""
    per_piece, per_full = (share * len(layers) * MIB for share in _per_layer(spec, layers, fitted))
    first_full = (_split_bytes(spec, layers, gpu, settings, full[-1]) + per_full) if full else 0.0
    widest = max((layer.mlp.intermediate for layer in layers if layer.mlp), default=0) / settings.layout.tensor
    first_piece = (
        fitted.graph_first_mib + fitted.graph_first_mib_per_1024 * widest / 1024 * pieces[-1] / _LARGEST
    ) * MIB + per_piece
    further = (len(pieces) - 1) * max(per_piece, MIB) + max(0, len(full) - 1) * max(per_full, MIB)
    return round(max(first_piece, first_full) + further)


def _per_layer(spec: ModelSpec, layers: tuple[Layer, ...], fitted: Fitted) -> tuple[float, float]:
    """MiB per layer and graph, in pieces and whole: more kernels, more memory."""
    caches = [cache for layer in layers for cache in layer.caches]
    if any(isinstance(cache, LinearState) for cache in caches):
        return fitted.graph_piece_hybrid_mib, fitted.graph_full_hybrid_mib
    routed = any(layer.mlp and layer.mlp.num_experts for layer in layers)
    if routed or any(isinstance(cache, LatentAttention) for cache in caches):
        return fitted.graph_piece_routed_mib, fitted.graph_full_routed_mib
    return fitted.graph_piece_mib, fitted.graph_full_mib


def _split_bytes(spec: ModelSpec, layers: tuple[Layer, ...], gpu: GpuSpec, settings: VllmSettings, largest: int) -> int:
    """The float32 results and weights that FlashAttention 3 keeps of every split of a decoding step."""
    if gpu.cuda_capability != 9.0 or settings.dtype is DType.F32 or spec.model_type.startswith(_OTHER_KERNELS):
        return 0
    widths = [_value_width(layer) for layer in layers]
    heads = ceil_div(max((layer.num_heads for layer in layers), default=0), settings.layout.tensor)
    return _FLASH_SPLITS * heads * largest * (max(widths, default=0) + 1) * 4


def _value_width(layer: Layer) -> int:
    """How wide one head's result is: a latent's width where attention runs on latents."""
    for cache in layer.caches:
        if isinstance(cache, LatentAttention):
            return cache.latent_width
    return layer.query_width // layer.num_heads if layer.num_heads else 0


def _at_most(sizes: tuple[int, ...], limit: int) -> int:
    return max(1, len([size for size in sizes if size <= limit]))
