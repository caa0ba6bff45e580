"""Latent attention in llama.cpp's graph: absorbed into the latent (one key head for all), or expanded to full heads.

Since b5137 the queries are multiplied into the latent's space and the cache holds latents; b7833 stopped storing values
beside them, because they are part of the keys. Before, and for models whose file has no separate key and value
projections, keys and values are expanded first and cached as if there were no latent.
"""

from __future__ import annotations

from memplan.domain.attention import FullAttention, LatentAttention
from memplan.engines.llama_cpp.ggml_graph import Value, contiguous, four, matmul, new, permute, reshape, view
from memplan.engines.llama_cpp.graph_builder import Builder, LayerWeights
from memplan.engines.llama_cpp.graph_scores import attend, rotate


def latent_attention(builder: Builder, latent: LatentAttention, weights: LayerWeights, value: Value) -> Value:
    """Latent attention, to the output projection."""
    query = _queries(builder, latent, weights, value)
    both = matmul(weights["attn_kv_a_mqa"], value, name="kv_a")
    tokens = builder.batch.tokens
    size, row = both.strides[0], both.strides[1]
    compressed = view(both, four(latent.latent_width, tokens), (size, row, row * tokens, row * tokens))
    key_rope = view(both, (latent.rope_width, 1, tokens, 1), (size, row, row, row * tokens))
    if "attn_k_b" in weights and builder.rules.latent:
        made = _absorbed(builder, latent, weights, query, compressed, key_rope)
    else:
        made = _expanded(builder, latent, weights, query, compressed, key_rope)
    return weights.linear(made, "attn_output")


def _queries(builder: Builder, latent: LatentAttention, weights: LayerWeights, value: Value) -> Value:
    if "attn_q_a" in weights:
        low = weights.norm(matmul(weights["attn_q_a"], value), "attn_q_a_norm")
        query = matmul(weights["attn_q_b"], low)
    else:
        query = matmul(weights["attn_q"], value)
    return reshape(query, latent.expanded_key_width, latent.num_heads, builder.batch.tokens)


def _cut_query(latent: LatentAttention, query: Value) -> tuple[Value, Value]:
    """The part of every head without positions, and the part with them."""
    nope, rope = latent.expanded_key_width - latent.rope_width, latent.rope_width
    _, heads, tokens, _ = query.shape
    return view(query, (nope, heads, tokens, 1), query.strides), view(query, (rope, heads, tokens, 1), query.strides)


def _absorbed(
    builder: Builder, latent: LatentAttention, weights: LayerWeights, query: Value, compressed: Value, key_rope: Value
) -> Value:
    tokens = builder.batch.tokens
    nope, rope = _cut_query(latent, query)
    if not builder.rules.values_before_keys:
        rope = rotate(builder, weights, rope)
    key_rope = rotate(builder, weights, key_rope)
    compressed = weights.norm(compressed, "attn_kv_a_norm")
    if builder.rules.values_before_keys:
        rope = rotate(builder, weights, rope)
    keys_b = _by_head(weights["attn_k_b"], latent.num_heads)
    absorbed = permute(matmul(keys_b, permute(nope, 0, 2, 1, 3)), 0, 2, 1, 3)
    width = latent.latent_width + latent.rope_width
    query = new("concat", "f32", (width, latent.num_heads, tokens, 1), *_ordered(builder, absorbed, rope))
    compressed = reshape(compressed, latent.latent_width, 1, tokens)
    key = new("concat", "f32", (width, 1, tokens, 1), *_ordered(builder, compressed, key_rope))
    values_b = _by_head(weights["attn_v_b"], latent.num_heads)
    heads = FullAttention(1, width, latent.latent_width)
    return attend(
        builder, weights, heads, query, key, compressed, has_window=False, after=values_b, values_in_keys=True
    )


def _ordered(builder: Builder, latent: Value, rope: Value) -> tuple[Value, Value]:
    return (latent, rope) if builder.rules.values_in_keys else (rope, latent)


def _by_head(matrix: Value, heads: int) -> Value:
    """A weight that is one matrix per head, whether it is stored so or with the heads' rows one after another."""
    if matrix.shape[2] == heads:
        return matrix
    shape = (matrix.shape[0], matrix.shape[1] // heads, heads, 1)
    return Value("none", matrix.type, shape, device=matrix.device, is_weight=True, name=matrix.name)


def _expanded(
    builder: Builder, latent: LatentAttention, weights: LayerWeights, query: Value, compressed: Value, key_rope: Value
) -> Value:
    tokens, heads = builder.batch.tokens, latent.num_heads
    nope, rope, width = latent.expanded_key_width - latent.rope_width, latent.rope_width, latent.expanded_value_width
    if builder.rules.copies_parts:
        compressed, key_rope = contiguous(compressed), contiguous(key_rope)
    compressed = weights.norm(compressed, "attn_kv_a_norm")
    both = matmul(_expansion(weights, latent, builder), compressed)
    size, head = both.strides[0], both.strides[0] * (nope + width)
    strides = (size, head, head * heads, head * heads * tokens)
    keys, values = (
        view(both, (nope, heads, tokens, 1), strides),
        contiguous(view(both, (width, heads, tokens, 1), strides)),
    )
    if builder.rules.rotates_tail:
        query = rotate(builder, weights, query)
        key_rope = rotate(builder, weights, key_rope)
    else:
        query_nope, query_rope = _cut_query(latent, query)
        if builder.rules.copies_parts:
            query_rope = contiguous(query_rope)
        query_rope = rotate(builder, weights, query_rope)
        key_rope = rotate(builder, weights, key_rope)
        query = new("concat", "f32", query.shape, query_nope, query_rope)
    repeated = new("repeat", "f32", (rope, heads, tokens, 1), key_rope)
    key = new("concat", "f32", (latent.expanded_key_width, heads, tokens, 1), keys, repeated)
    full = FullAttention(heads, latent.expanded_key_width, width)
    return attend(builder, weights, full, query, key, values, has_window=False)


def _expansion(weights: LayerWeights, latent: LatentAttention, builder: Builder) -> Value:
    """The weight that expands a latent; a stand-in of its size where the file has keys and values apart."""
    if "attn_kv_b" in weights:
        return weights["attn_kv_b"]
    keys = weights["attn_k_b"]
    nope = latent.expanded_key_width - latent.rope_width
    rows = latent.num_heads * (nope + latent.expanded_value_width)
    return Value(
        "none", keys.type, four(latent.latent_width, rows), device=keys.device, is_weight=True, name="attn_kv_b"
    )
