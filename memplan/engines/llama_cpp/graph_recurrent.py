"""Recurrent mixers in llama.cpp's graph: Mamba 1 and 2, short convolutions, gated delta nets.

All share a form: the state of every sequence is copied out of the cache, the step's inputs are put behind the last
inputs that the convolution keeps, a scan runs over the step, and states are written back.

Not modelled: RWKV, KDA and lightning attention (`graph_encoder.unknown_mixer` stands in for them).

Source: mamba-base.cpp, delta-net-base.cpp, lfm2.cpp and build_rs of the snapshot in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from memplan.domain.attention import LinearState
from memplan.engines.llama_cpp.ggml_graph import (
    Value,
    cache,
    contiguous,
    copy_into,
    four,
    get_rows,
    like,
    matmul,
    new,
    reshape,
    transpose,
    view,
)
from memplan.engines.llama_cpp.graph_builder import Builder, LayerWeights


def is_modelled(weights: LayerWeights) -> bool:
    """Whether the mixer of a layer is one of those below."""
    if "shortconv.in_proj" in weights:
        return True
    if "ssm_out" not in weights or "ssm_conv1d" not in weights:
        return False
    return "ssm_in" in weights or "attn_qkv" in weights


def recurrent(builder: Builder, state: LinearState, weights: LayerWeights, value: Value) -> Value:
    """One recurrent mixer, to its output projection."""
    if "shortconv.in_proj" in weights:
        return _short_convolution(builder, state, weights, value)
    if "ssm_x" in weights:
        return _mamba1(builder, state, weights, value)
    if "ssm_in" in weights:
        return _mamba2(builder, state, weights, value)
    return _delta_net(builder, state, weights, value)


def _steps(builder: Builder) -> tuple[int, int]:
    """Tokens of one sequence in the step, and how many sequences."""
    sequences = min(builder.batch.sequences, builder.batch.tokens)
    return -(-builder.batch.tokens // sequences), sequences


def _state(builder: Builder, weights: LayerWeights, name: str, elements: int) -> tuple[Value, Value]:
    """The states of all sequences in the cache, and the copy that the step works on."""
    _, sequences = _steps(builder)
    kept = cache(name, "f32", builder.placement.caches[weights.index], elements, sequences)
    rows = builder.input("state rows", "i32", sequences)
    copied = get_rows(kept, rows)
    builder.graph.expand(copied)
    return kept, copied


def _convolve(builder: Builder, weights: LayerWeights, state: LinearState, inputs: Value, name: str) -> Value:
    """Put kept inputs before the step's, keep the last ones, convolve; `inputs` is (channels, tokens, sequences)."""
    tokens, sequences = _steps(builder)
    channels, taps = inputs.shape[0], max(state.conv_kernel - 1, 1)
    kept, copied = _state(builder, weights, "convolution", taps * channels)
    before = reshape(copied, taps, channels, sequences)
    row = new("concat", "f32", (taps + tokens, channels, sequences, 1), before, transpose(inputs))
    last = view(row, (taps, channels, sequences, 1), row.strides)
    builder.graph.expand(copy_into(last, view(kept, four(taps * channels * sequences))))
    made = new("ssm_conv", "f32", (channels, tokens, sequences, 1), row, weights[name])
    bias = weights.bias(name)
    return like("unary", like("add", made, bias) if bias is not None else made)


def _mamba1(builder: Builder, state: LinearState, weights: LayerWeights, value: Value) -> Value:
    tokens, sequences = _steps(builder)
    inner = weights["ssm_out"].shape[0]
    width = state.state_elements // inner
    both = matmul(weights["ssm_in"], reshape(value, value.shape[0], tokens, sequences))
    half = view(both, (inner, tokens, sequences, 1), both.strides)
    gate = view(both, (inner, tokens, sequences, 1), both.strides)
    mixed = _convolve(builder, weights, state, half, "ssm_conv1d")
    projected = matmul(weights["ssm_x"], mixed)
    rank = projected.shape[0] - 2 * width
    step = view(projected, (rank, tokens, sequences, 1), projected.strides)
    step = weights.norm(step, "ssm_dt_norm") if "ssm_dt_norm" in weights else contiguous(step)
    step = weights.linear(step, "ssm_dt")
    scanned = _scan(builder, weights, state, mixed, step, projected)
    flat = view(scanned, (inner, tokens, sequences, 1))
    out = like("add", flat, like("mul", mixed, step))
    return reshape(matmul(weights["ssm_out"], _gated(builder, gate, out)), value.shape[0], tokens * sequences)


def _mamba2(builder: Builder, state: LinearState, weights: LayerWeights, value: Value) -> Value:
    tokens, sequences = _steps(builder)
    inner = weights["ssm_out"].shape[0]
    channels = weights["ssm_conv1d"].shape[1]
    both = matmul(weights["ssm_in"], value)
    both = reshape(both, both.shape[0], tokens, sequences)
    heads = both.shape[0] - inner - channels
    gate = view(both, (inner, tokens, sequences, 1), both.strides)
    inputs = view(both, (channels, tokens, sequences, 1), both.strides)
    step = contiguous(view(both, (heads, tokens, sequences, 1), both.strides))
    mixed = _convolve(builder, weights, state, inputs, "ssm_conv1d")
    parts = view(mixed, (inner, tokens, sequences, 1), mixed.strides)
    bias = weights.bias("ssm_dt")
    step = like("add", step, bias) if bias is not None else step
    scanned = _scan(builder, weights, state, parts, step, mixed)
    out = like("add", view(scanned, (inner, tokens, sequences, 1)), like("mul", parts, step))
    gated = (
        weights.norm(_gated(builder, gate, out), "ssm_norm") if "ssm_norm" in weights else _gated(builder, gate, out)
    )
    return matmul(weights["ssm_out"], reshape(gated, inner, tokens * sequences))


def _scan(
    builder: Builder, weights: LayerWeights, state: LinearState, values: Value, step: Value, rest: Value
) -> Value:
    """The scan's result: outputs of every token, then the final states, which go back to the cache."""
    tokens, sequences = _steps(builder)
    kept = cache("state", "f32", builder.placement.caches[weights.index], state.state_elements, sequences)
    rows = builder.input("state rows", "i32", sequences)
    size = values.shape[0] * tokens * sequences + state.state_elements * sequences
    made = new("ssm_scan", "f32", four(size), kept, values, step, rest, rows)
    builder.graph.expand(made)
    final = view(made, four(state.state_elements * sequences))
    builder.graph.expand(copy_into(final, view(kept, four(state.state_elements * sequences))))
    return made


def _gated(builder: Builder, gate: Value, out: Value) -> Value:
    gate = contiguous(gate)
    if builder.rules.fused_glu:
        return new("glu", "f32", out.shape, gate, out)
    return like("mul", out, like("unary", gate))


def _short_convolution(builder: Builder, state: LinearState, weights: LayerWeights, value: Value) -> Value:
    tokens, sequences = _steps(builder)
    hidden = value.shape[0]
    both = matmul(weights["shortconv.in_proj"], reshape(value, hidden, tokens, sequences))
    first, second, third = (view(both, (hidden, tokens, sequences, 1), both.strides) for _ in range(3))
    taps = max(state.conv_kernel - 1, 1)
    product = like("mul", first, third)
    kept, copied = _state(builder, weights, "convolution", taps * hidden)
    row = new(
        "concat",
        "f32",
        (taps + tokens, hidden, sequences, 1),
        reshape(copied, taps, hidden, sequences),
        transpose(product),
    )
    last = view(row, (taps, hidden, sequences, 1), row.strides)
    builder.graph.expand(copy_into(last, view(kept, four(taps * hidden * sequences))))
    mixed = new("ssm_conv", "f32", (hidden, tokens, sequences, 1), row, weights["shortconv.conv"])
    out = matmul(weights["shortconv.out_proj"], like("mul", second, mixed))
    return reshape(out, hidden, tokens * sequences)


def _delta_net(builder: Builder, state: LinearState, weights: LayerWeights, value: Value) -> Value:
    """A gated delta net: one fused operation since it has a kernel, over queries and keys repeated to the values'
    heads.
    """
    tokens, sequences = _steps(builder)
    inner = weights["ssm_out"].shape[0]
    mixed = reshape(matmul(weights["attn_qkv"], value), weights["attn_qkv"].shape[1], tokens, sequences)
    gate = matmul(weights["attn_gate"], value) if "attn_gate" in weights else mixed
    decay = _decay(weights, value)
    done = _convolve(builder, weights, state, mixed, "ssm_conv1d")
    kept, copied = _state(builder, weights, "state", state.state_elements)
    keys = (mixed.shape[0] - inner) // 2
    width = weights["ssm_norm"].shape[0] if "ssm_norm" in weights else 128
    parts = []
    for _ in range(2):
        part = like("l2_norm", view(done, (width, keys // width, tokens, sequences), done.strides))
        parts.append(new("repeat", "f32", (width, inner // width, tokens, sequences), part) if keys != inner else part)
    values = view(done, (width, inner // width, tokens, sequences), done.strides)
    size = inner * tokens * sequences + state.state_elements * sequences
    made = new("delta_net", "f32", four(size), *parts, values, *decay, copied)
    builder.graph.expand(made)
    final = view(made, four(state.state_elements * sequences))
    builder.graph.expand(copy_into(final, view(kept, four(state.state_elements * sequences))))
    out = view(made, (width, inner // width, tokens, sequences))
    normed = weights.norm(out, "ssm_norm") if "ssm_norm" in weights else out
    gated = like("mul", normed, like("unary", reshape(gate, width, inner // width, tokens, sequences)))
    return matmul(weights["ssm_out"], reshape(gated, inner, tokens * sequences))


def _decay(weights: LayerWeights, value: Value) -> tuple[Value, ...]:
    """Decay and write strength of every head."""
    names = [name for name in ("ssm_ba", "ssm_beta", "ssm_alpha") if name in weights]
    return tuple(like("unary", matmul(weights[name], value)) for name in names)
