"""The attention half of a layer as llama.cpp's graph has it: projections, norms, positions, the gate of the output."""

from __future__ import annotations

from memplan.domain.attention import FullAttention, LatentAttention, SharedKV
from memplan.domain.model import Layer
from memplan.engines.llama_cpp.ggml_graph import Value, contiguous, like, reshape, view
from memplan.engines.llama_cpp.graph_builder import Builder, LayerWeights
from memplan.engines.llama_cpp.graph_latent import latent_attention
from memplan.engines.llama_cpp.graph_scores import (
    Heads,
    LayerCache,
    attend,
    attend_within,
    attention_mask,
    rotate,
    scores,
)


def attention(builder: Builder, layer: Layer, weights: LayerWeights, value: Value) -> Value:
    """Softmax attention over the cache, to the output projection."""
    latent = next((kept for kept in layer.caches if isinstance(kept, LatentAttention)), None)
    if latent is not None:
        return latent_attention(builder, latent, weights, value)
    kept = next((kept for kept in layer.caches if isinstance(kept, Heads)), None)
    if kept is not None and any(isinstance(other, SharedKV) for other in layer.caches):
        return _reads_shared(builder, layer, kept, weights, value)
    heads = kept or _heads_of(layer, weights)
    query, key, values, gate = _projections(builder, layer, heads, weights, value)
    if builder.traits.scales_queries:
        query = like("scale", query)
    if kept is None:
        made = attend_within(builder, query, key, values)
    else:
        made = attend(builder, weights, heads, query, key, values, has_window=not isinstance(heads, FullAttention))
    if gate is not None:
        made = like("mul", made, like("unary", contiguous(gate, made.shape[0], made.shape[1])))
    return weights.linear(made, "attn_output") if "attn_output" in weights else made


def _heads_of(layer: Layer, weights: LayerWeights) -> FullAttention:
    """The heads of a layer that keeps nothing, from its weights."""
    width = max(layer.query_width // max(layer.num_heads, 1), 1)
    if "attn_k" in weights:
        kept = weights["attn_k"].shape[1]
    elif "attn_qkv" in weights:
        kept = max(weights["attn_qkv"].shape[1] - layer.query_width, 2 * width) // 2
    else:
        kept = layer.query_width
    return FullAttention(num_kv_heads=max(kept // width, 1), key_width=width, value_width=width)


def _reads_shared(builder: Builder, layer: Layer, heads: Heads, weights: LayerWeights, value: Value) -> Value:
    """Attention to the cache that an earlier layer has written in this step."""
    query = reshape(weights.linear(value, "attn_q"), heads.key_width, layer.num_heads, builder.batch.tokens)
    query, _ = _head_norms(weights, query, query)
    if builder.traits.rotates(weights.index):
        query = rotate(builder, weights, query)
    if builder.traits.scales_queries:
        query = like("scale", query)
    builder.graph.expand(query)
    name, cells = builder.cells_of(has_window=not isinstance(heads, FullAttention))
    kept = LayerCache(builder, weights.index, heads, cells)
    made = scores(builder, query, kept.keys(), kept.values(), attention_mask(builder, name, cells))
    return weights.linear(made, "attn_output")


def _projections(
    builder: Builder, layer: Layer, heads: Heads, weights: LayerWeights, value: Value
) -> tuple[Value, Value, Value, Value | None]:
    """Queries, keys and values by head, normed and rotated, and the output's gate where queries carry one."""
    tokens, count = builder.batch.tokens, layer.num_heads
    gate = None
    if "attn_qkv" in weights:
        fused = weights.linear(value, "attn_qkv")
        query = _part(builder, fused, heads.key_width, count)
        key = _part(builder, fused, heads.key_width, heads.num_kv_heads)
        values = _part(builder, fused, heads.value_width, heads.num_kv_heads)
    else:
        query = weights.linear(value, "attn_q")
        key = weights.linear(value, "attn_k")
        values = weights.linear(value, "attn_v") if "attn_v" in weights else key
        query, key = _full_norms(weights, query, key)
        if query.shape[0] == 2 * count * heads.key_width:
            both = reshape(query, 2 * heads.key_width, count, tokens)
            query, gate = (view(both, (heads.key_width, count, tokens, 1), both.strides) for _ in range(2))
        else:
            query = reshape(query, heads.key_width, count, tokens)
        key = reshape(key, heads.key_width, heads.num_kv_heads, tokens)
        values = reshape(values, heads.value_width, heads.num_kv_heads, tokens)
    if not builder.traits.norms_after_rope:
        query, key = _head_norms(weights, query, key)
    if builder.traits.rotates(weights.index):
        query, key = rotate(builder, weights, query), rotate(builder, weights, key)
    if builder.traits.norms_after_rope:
        query, key = _head_norms(weights, query, key)
    return query, key, values, gate


def _part(builder: Builder, fused: Value, width: int, count: int) -> Value:
    """The queries, keys or values of a fused projection, by head."""
    size, row, tokens = fused.strides[0], fused.strides[1], builder.batch.tokens
    if builder.rules.copies_fused:
        flat = contiguous(view(fused, (width * count, tokens, 1, 1), (size, row, row * tokens, row * tokens)))
        return reshape(flat, width, count, tokens)
    return view(fused, (width, count, tokens, 1), (size, size * width, row, row * tokens))


def _full_norms(weights: LayerWeights, query: Value, key: Value) -> tuple[Value, Value]:
    """Norms over all heads at once (OLMo 2), which stand before the heads are taken apart."""
    if "attn_q_norm" in weights and weights["attn_q_norm"].shape[0] == query.shape[0]:
        return weights.norm(query, "attn_q_norm"), weights.norm(key, "attn_k_norm")
    return query, key


def _head_norms(weights: LayerWeights, query: Value, key: Value) -> tuple[Value, Value]:
    """Norms of each head's queries and keys, where the layer has them."""
    if "attn_q_norm" in weights and weights["attn_q_norm"].shape[0] == query.shape[0]:
        query = weights.norm(query, "attn_q_norm")
    if "attn_k_norm" in weights and weights["attn_k_norm"].shape[0] == key.shape[0]:
        key = weights.norm(key, "attn_k_norm")
    return query, key
