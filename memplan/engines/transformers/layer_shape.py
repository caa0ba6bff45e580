"""What the passes through a layer depend on, read off its tensors once: the widths of its attention, its recurrent
mixer and its MLP.
"""

from __future__ import annotations

from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CompressedAttention,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LatentWindow,
    LinearState,
    SlidingWindow,
)
from memplan.domain.model import Layer, Mlp
from memplan.domain.tensors import Role
from memplan.records import dataclass

_QUERY_NORMS = ("q_norm", "q_layernorm")
_PROJECTIONS = ("in_proj", "in_proj_qkvz", "in_proj_z", "conv1d", "g_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """A layer's softmax attention, in elements per token.

    `window` is how many tokens a key is seen by, None for all of them. `expanded` is the width that latents are
    expanded to, 0 without latents; `ratios` are those of compressed keys that are attended to beside the plain ones.
    """

    num_heads: int
    query: int
    keys: int
    values: int
    output: int
    head_width: int
    is_grouped: bool
    window: int | None = None
    has_query_norm: bool = False
    expanded: int = 0
    is_latent: bool = False
    ratios: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """A sparse-attention indexer: its heads, the width of a key, and how many tokens share one."""

    num_heads: int
    key_width: int
    ratio: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """A recurrent mixer: its state, the widths of its projections and of its output, the heads of a delta net.

    `per_key` says that decays differ from key to key (Kimi's delta attention).
    """

    state: LinearState
    projected: int
    inner: int
    heads: int
    per_key: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """A layer, as far as its passes depend on it.

    `is_fused` is one projection for gate and up, `norms_afterwards` a layer without a norm before its MLP,
    `keeps_shared` shared experts whose output waits for the routed ones, `is_llm_int8` an MLP under LLM.int8().
    """

    heads: Heads | None
    indexer: Indexer | None
    mixer: Mixer | None
    mlp: Mlp | None
    num_heads: int
    is_fused: bool
    norms_afterwards: bool
    keeps_shared: bool
    is_llm_int8: bool


def shape_of(layer: Layer, hidden: int) -> LayerShape:
    """Read a layer of a model whose hidden states are `hidden` wide."""
    names = {tensor.name.partition(".")[0] for tensor in layer.tensors}
    return LayerShape(
        heads=next((heads for cache in layer.caches if (heads := _heads(cache, layer)) is not None), None),
        indexer=next((_indexer(cache, layer) for cache in layer.caches if isinstance(cache, IndexerKeys)), None),
        mixer=next((_mixer(cache, layer, hidden) for cache in layer.caches if isinstance(cache, LinearState)), None),
        mlp=layer.mlp,
        num_heads=layer.num_heads,
        is_fused=any(tensor.name.endswith("gate_up_proj.weight") for tensor in layer.tensors),
        norms_afterwards="post_feedforward_layernorm" in names
        and not names & {"pre_feedforward_layernorm", "input_layernorm"},
        keeps_shared=any(".shared_expert." in tensor.name for tensor in layer.tensors),
        is_llm_int8=any(
            tensor.storage is not None and tensor.storage.scheme == "bnb-int8"
            for tensor in layer.tensors
            if tensor.role is Role.MLP
        ),
    )


def _heads(cache: Cache, layer: Layer) -> Heads | None:
    number = max(layer.num_heads, 1)
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal)):
        return Heads(
            num_heads=number,
            query=layer.query_width,
            keys=cache.num_kv_heads * cache.key_width,
            values=cache.num_kv_heads * cache.value_width,
            output=number * cache.value_width,
            head_width=max(cache.key_width, cache.value_width),
            is_grouped=cache.num_kv_heads < number,
            window=_window(cache),
            has_query_norm=any(tensor.name.rsplit(".", 2)[-2] in _QUERY_NORMS for tensor in layer.tensors),
        )
    if isinstance(cache, LatentAttention):
        keys = cache.num_heads * cache.expanded_key_width
        values = cache.num_heads * cache.expanded_value_width
        return Heads(
            num_heads=cache.num_heads,
            query=keys,
            keys=keys,
            values=values,
            output=values,
            head_width=cache.expanded_key_width,
            is_grouped=False,
            expanded=sum(tensor.shape[-2] for tensor in layer.tensors if tensor.name.endswith("kv_b_proj.weight")),
            is_latent=True,
        )
    if isinstance(cache, (LatentWindow, CompressedAttention)):
        width = cache.latent_width + cache.rope_width
        return Heads(
            num_heads=number,
            query=number * width,
            keys=width,
            values=0,
            output=number * width,
            head_width=width,
            is_grouped=True,
            window=cache.window_tokens if isinstance(cache, LatentWindow) else 0,
            ratios=tuple(other.ratio for other in layer.caches if isinstance(other, CompressedAttention)),
        )
    return None


def _window(cache: FullAttention | SlidingWindow | ChunkedLocal) -> int | None:
    if isinstance(cache, SlidingWindow):
        return cache.window_tokens
    return cache.chunk_tokens if isinstance(cache, ChunkedLocal) else None


def _indexer(cache: IndexerKeys, layer: Layer) -> Indexer:
    width = sum(tensor.shape[-2] for tensor in layer.tensors if tensor.name.endswith("indexer.wq_b.weight"))
    return Indexer(num_heads=width // cache.key_width, key_width=cache.key_width, ratio=cache.ratio)


def _mixer(state: LinearState, layer: Layer, hidden: int) -> Mixer:
    projected = inner = 0
    heads = state.shard_units
    for tensor in layer.tensors:
        module = tensor.name.rsplit(".", 2)[-2] if tensor.name.endswith(".weight") else ""
        if module in _PROJECTIONS:
            projected += tensor.shape[0]
        if module in ("out_proj", "o_proj") and len(tensor.shape) == 2:
            inner = tensor.shape[1]
        if tensor.name.endswith(("dt_bias", "A_log")) and state.kind == "gated_delta_net":
            heads = tensor.shape[-1]
    return Mixer(
        state=state,
        projected=projected,
        inner=inner or hidden,
        heads=heads,
        per_key=any("f_a_proj" in tensor.name for tensor in layer.tensors),
    )
