"""A profiled step of DeepSeek V4: a residual stream of several lanes, and attention that is padded to 64 or 128 heads.

What lives while an indexer works, which is the fullest moment: the lanes and the mixed hidden state, the attention's
queries and its output, both padded, the indexer's queries in 16 and in 8 bits, the compressors' keys and scores in
FP32, and a block that stands for the indexer's logits. The whole step's lanes are also kept for a predictor, whether or
not one is served, in a buffer that counts as weights.

Source: vllm/models/deepseek_v4 (model.py, attention.py) and model_executor/layers/sparse_attn_indexer.py, 0.20 to 0.33;
vllm/envs.py (VLLM_SPARSE_INDEXER_MAX_LOGITS_MB). Not modelled: what tilelang's and DeepGEMM's kernels take beside that.
"""

from __future__ import annotations

from collections.abc import Iterable

from memplan.domain.attention import CompressedAttention, IndexerKeys, LatentWindow
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Tensor
from memplan.engines.vllm.settings import VllmSettings
from memplan.units import MIB

_HEADS = (64, 128)
_LOGITS_BYTES = 512 * MIB
_GATHERED_REQUESTS = 4


def has_lanes(layers: Iterable[Layer]) -> bool:
    """Whether the layers are those of DeepSeek V4."""
    return any(isinstance(cache, LatentWindow) for layer in layers for cache in layer.caches)


def lanes_peak_bytes(layers: tuple[Layer, ...], spec: ModelSpec, settings: VllmSettings) -> int:
    """The peak of a full step through `layers` on one rank, without shared workspaces."""
    distinct = {id(layer): layer for layer in layers}.values()
    return max((_layer_bytes(layer, spec, settings) for layer in distinct), default=0)


def predictor_buffer_bytes(spec: ModelSpec, settings: VllmSettings) -> int:
    """The lanes of a step that are kept for a predictor; 0 for other models."""
    if not has_lanes(spec.layers):
        return 0
    return settings.batched_tokens * _num_lanes(spec.layers[0], spec) * spec.hidden_size * settings.dtype.bits // 8


def gathered_bytes(layers: Iterable[Layer], settings: VllmSettings) -> int:
    """Latents of a few requests in 16 bits, which the attention gathers in the shared workspace."""
    widest = 0
    for layer in layers:
        for cache in layer.caches:
            if not isinstance(cache, LatentWindow):
                continue
            ratio = max((each.ratio for each in layer.caches if isinstance(each, CompressedAttention)), default=0)
            compressed = -(-settings.context_tokens // ratio) if ratio else 0
            tokens = compressed + cache.window_tokens + settings.batched_tokens
            widest = max(widest, tokens * (cache.latent_width + cache.rope_width) * 2)
    return _GATHERED_REQUESTS * widest


def _layer_bytes(layer: Layer, spec: ModelSpec, settings: VllmSettings) -> int:
    width = next(c.latent_width + c.rope_width for c in layer.caches if isinstance(c, LatentWindow))
    heads = -(-layer.num_heads // settings.layout.tensor)
    padded = next((size for size in _HEADS if heads <= size), heads)
    hidden = (_num_lanes(layer, spec) + 1) * spec.hidden_size
    scores = sum(c.state.width for c in layer.caches if isinstance(c, (CompressedAttention, IndexerKeys)) if c.state)
    tokens = settings.batched_tokens
    shared = 2 * (hidden + padded * width) + 4 * scores
    indexer = _tensor(layer.tensors, "indexer.wq_b")
    if indexer is None:
        return tokens * (shared + 2 * (padded + heads) * width)
    return tokens * (shared + 2 * padded * width + 3 * indexer.shape[0]) + _LOGITS_BYTES


def _num_lanes(layer: Layer, spec: ModelSpec) -> int:
    mixing = _tensor(layer.tensors, "hc_attn_fn")
    return mixing.shape[-1] // spec.hidden_size if mixing is not None else 1


def _tensor(tensors: Iterable[Tensor], name: str) -> Tensor | None:
    return next((tensor for tensor in tensors if name in tensor.name), None)
