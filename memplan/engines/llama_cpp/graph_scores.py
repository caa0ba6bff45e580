"""Attention proper in llama.cpp's graph: over the rows of the cache, or within one step where nothing is kept."""

from __future__ import annotations

from memplan.domain.attention import ChunkedLocal, FullAttention, SlidingWindow
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

Heads = FullAttention | SlidingWindow | ChunkedLocal


def rotate(builder: Builder, weights: LayerWeights, value: Value) -> Value:
    """Rotary positions; some models have factors for them, a small weight of their own."""
    positions = builder.input("positions", "i32", value.shape[2] * builder.traits.position_axes)
    factors = weights.rope_factors()
    return like("rope", value, positions, *((factors,) if factors is not None else ()))


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
    kept = LayerCache(builder, weights.index, heads, cells)
    graph.expand(kept.store_keys(key, name))
    mask = attention_mask(builder, name, cells)
    if values_in_keys and builder.rules.values_in_keys:
        keys = kept.keys()
        return scores(builder, query, keys, view(keys, (heads.value_width, *keys.shape[1:]), keys.strides), mask, after)
    graph.expand(kept.store_values(values, name))
    return scores(builder, query, kept.keys(), kept.values(), mask, after)


def attend_within(builder: Builder, query: Value, key: Value, values: Value) -> Value:
    """Attention of every token to all tokens of the step."""
    if not builder.rules.copies_parts:  # before llama-graph.cpp, values came first, for want of an order
        for part in (query, key, values):
            builder.graph.expand(part)
    batch = builder.batch
    padded = -(-batch.tokens // builder.rules.mask_multiple) * builder.rules.mask_multiple
    kind = "f16" if batch.flash and builder.rules.half_mask else "f32"
    mask = builder.input("mask step", kind, batch.tokens, padded)
    return scores(builder, query, key, values, mask)


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


class LayerCache:
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
