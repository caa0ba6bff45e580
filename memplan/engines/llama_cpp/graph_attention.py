"""The attention half of a layer as llama.cpp's graph has it: projections, rows of the cache, scores."""

from __future__ import annotations

from memplan.domain.attention import ChunkedLocal, FullAttention, LatentAttention, SharedKV, SlidingWindow
from memplan.domain.model import Layer
from memplan.engines.llama_cpp.ggml_graph import (
    Value,
    cache,
    cast,
    contiguous,
    copy_into,
    like,
    matmul,
    new,
    permute,
    reshape,
    set_rows,
    transpose,
    view,
)
from memplan.engines.llama_cpp.graph_builder import Builder, LayerWeights
from memplan.engines.llama_cpp.graph_encoder import attend_within, heads_of

Heads = FullAttention | SlidingWindow | ChunkedLocal


def attention(builder: Builder, layer: Layer, weights: LayerWeights, value: Value) -> Value:
    """Softmax attention over the cache, to the output projection."""
    latent = next((kept for kept in layer.caches if isinstance(kept, LatentAttention)), None)
    if latent is not None:
        from memplan.engines.llama_cpp.graph_latent import latent_attention

        return latent_attention(builder, latent, weights, value)
    kept = next((kept for kept in layer.caches if isinstance(kept, Heads)), None)
    if kept is not None and any(isinstance(other, SharedKV) for other in layer.caches):
        return _reads_shared(builder, layer, kept, weights, value)
    heads = kept or heads_of(layer, weights)
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
    kept = _Cache(builder, weights.index, heads, cells)
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


def rotate(builder: Builder, weights: LayerWeights, value: Value) -> Value:
    """Rotary positions; some models have factors for them, a small weight of their own."""
    positions = builder.input("positions", "i32", value.shape[2] * builder.traits.position_axes)
    factors = weights.rope_factors()
    return like("rope", value, positions, *((factors,) if factors is not None else ()))


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


def attend(
    builder: Builder,
    weights: LayerWeights,
    heads: Heads,
    query: Value,
    key: Value,
    values: Value,
    *,
    has_window: bool,
    after: Value | None = None,
    values_in_keys: bool = False,
) -> Value:
    """Write keys and values to the cache and attend to all of its cells; the result by token.

    `after` is a weight per head that the result goes through, `values_in_keys` takes values as part of the keys where
    the release does so (latent attention).
    """
    graph = builder.graph
    graph.expand(query)
    first, second = (values, key) if builder.rules.values_before_keys else (key, values)
    graph.expand(first)
    graph.expand(second)
    name, cells = builder.cells_of(has_window=has_window)
    kept = _Cache(builder, weights.index, heads, cells)
    graph.expand(kept.store_keys(key, name))
    mask = attention_mask(builder, name, cells)
    if values_in_keys and builder.rules.values_in_keys:
        keys = kept.keys()
        return scores(builder, query, keys, view(keys, (heads.value_width, *keys.shape[1:]), keys.strides), mask, after)
    graph.expand(kept.store_values(values, name))
    return scores(builder, query, kept.keys(), kept.values(), mask, after)


def attention_mask(builder: Builder, name: str, cells: int) -> Value:
    """The mask of one kind of layer, as attention reads it."""
    batch, rules = builder.batch, builder.rules
    tokens = -(-batch.tokens // batch.streams // rules.mask_multiple) * rules.mask_multiple
    kind = "f16" if batch.flash and rules.half_mask else "f32"
    mask = builder.input(f"mask {name}", kind, cells, tokens, 1, batch.streams)
    if not batch.flash or rules.half_mask:
        return mask
    half = f"half mask {name}"
    if half not in builder.inputs:
        builder.inputs[half] = cast(mask, "f16")
    return builder.inputs[half]


def scores(
    builder: Builder, query: Value, keys: Value, values: Value, mask: Value, after: Value | None = None
) -> Value:
    """Attention proper. `values` lie transposed unless flash attention reads them."""
    batch, streams = builder.batch, keys.shape[3]
    transposed = values.strides[1] > values.strides[2]
    width, count, tokens, _ = query.shape
    step = query.strides
    query = view(
        query, (width, count, tokens // streams, streams), (step[0], step[1], step[2], step[2] * (tokens // streams))
    )
    query, keys, values = (permute(part, 0, 2, 1, 3) for part in (query, keys, values))
    if batch.flash:
        keys, values = (cast(part, "f16") if part.type == "f32" else part for part in (keys, values))
        made = new("flash_attn", "f32", (values.shape[0], count, tokens // streams, streams), query, keys, values, mask)
        if after is not None:
            made = permute(matmul(after, permute(made, 0, 2, 1, 3)), 0, 2, 1, 3)
            made = contiguous(made)
        made = reshape(made, made.shape[0] * made.shape[1], tokens)
    else:
        weighed = matmul(keys, query, name="kq")
        if builder.traits.softcaps_attention:
            weighed = like("scale", like("unary", like("scale", weighed)))
        weighed = like("soft_max", weighed, mask, name="kq_soft_max")
        if not transposed:
            values = contiguous(transpose(values))
        made = matmul(values, weighed, name="kqv")
        if after is not None:
            made = matmul(after, made)
        made = permute(made, 0, 2, 1, 3)
        made = contiguous(made, made.shape[0] * made.shape[1], tokens, name="kqv_out")
        if builder.placement.attends_on_cpu:
            made.backend = builder.placement.cpu
    return builder.graph.expand(made)


class _Cache:
    """The cache of one layer: what is written of a step, and the views that attention reads."""

    def __init__(self, builder: Builder, index: int, heads: Heads, cells: int) -> None:
        batch = builder.batch
        self.builder, self.heads, self.cells, self.streams = builder, heads, cells, batch.streams
        device = builder.placement.caches[index]
        self.key_row, self.value_row = heads.num_kv_heads * heads.key_width, heads.num_kv_heads * heads.value_width
        self.key = cache("keys", batch.key_type, device, self.key_row, cells, batch.streams)
        self.value = cache("values", batch.value_type, device, self.value_row, cells, batch.streams)

    def store_keys(self, key: Value, name: str) -> Value:
        tokens = self.builder.batch.tokens
        if not self.builder.rules.set_rows:
            part = view(self.key, (self.key_row * tokens, 1, 1, 1))
            return copy_into(key, part)
        rows = self.builder.input(f"key rows {name}", "i64", tokens)
        flat = _by_token(key, self.key_row, tokens)
        target = self.key if self.streams == 1 else reshape(self.key, self.key_row, self.cells * self.streams)
        return set_rows(target, flat, rows)

    def store_values(self, values: Value, name: str) -> Value:
        batch, tokens = self.builder.batch, self.builder.batch.tokens
        if not self.builder.rules.set_rows:
            flat = reshape(values, self.value_row, tokens)
            part = view(self.value, (self.value_row * tokens, 1, 1, 1))
            return copy_into(flat if batch.flash else transpose(flat), part)
        if batch.flash:
            rows = self.builder.input(f"value rows {name}", "i64", tokens)
            flat = _by_token(values, self.value_row, tokens)
            target = self.value if self.streams == 1 else reshape(self.value, self.value_row, self.cells * self.streams)
            return set_rows(target, flat, rows)
        rows = self.builder.input(f"value rows {name}", "i64", tokens * self.value_row)
        packed = values.strides[2] == values.strides[1] * values.shape[1]
        flat = (reshape if packed else contiguous)(values, self.value_row, tokens)
        target = reshape(self.value, 1, self.value_row * self.cells * self.streams)
        return set_rows(target, reshape(flat, 1, self.value_row * tokens), rows)

    def keys(self) -> Value:
        return _by_head(self.key, self.heads.key_width, self.heads.num_kv_heads, self.cells, self.streams)

    def values(self) -> Value:
        width, count = self.heads.value_width, self.heads.num_kv_heads
        if self.builder.batch.flash:
            return _by_head(self.value, width, count, self.cells, self.streams)
        size, cells = self.value.strides[0], self.cells
        return view(
            self.value,
            (cells, count, width, self.streams),
            (size, size * cells * width, size * cells, size * cells * width * count),
        )


def _by_token(value: Value, row: int, tokens: int) -> Value:
    """Heads of one token side by side, whatever lies between two tokens."""
    size, step = value.strides[0], value.strides[2]
    return view(value, (row, tokens, 1, 1), (size, step, step * tokens, step * tokens))


def _by_head(kept: Value, width: int, count: int, cells: int, streams: int) -> Value:
    size, row = kept.strides[0], kept.strides[1]
    head = row // count if count else row
    return view(kept, (width, count, cells, streams), (size, head, row, row * cells))
