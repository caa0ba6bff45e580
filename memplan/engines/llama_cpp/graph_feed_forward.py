"""The MLP half of a layer as llama.cpp's graph has it: dense, or routed experts with what every token shares."""

from __future__ import annotations

from memplan.domain.model import Layer
from memplan.engines.llama_cpp.ggml_graph import (
    Value,
    contiguous,
    four,
    get_rows,
    like,
    matmul,
    matmul_experts,
    new,
    reshape,
    view,
)
from memplan.engines.llama_cpp.graph_builder import Builder, LayerWeights, missing_weight


def feed_forward(builder: Builder, layer: Layer, weights: LayerWeights, value: Value) -> Value:
    """The whole feed-forward part of a layer."""
    if "ffn_down_exps" not in weights:
        return dense(builder, weights, value)
    routed = experts(builder, layer, weights, value)
    if "ffn_down_shexp" in weights:
        shared = dense(builder, weights, value, suffix="_shexp")
        if builder.traits.gates_shared_expert and "ffn_gate_inp_shexp" in weights:
            gate = like("unary", matmul(weights["ffn_gate_inp_shexp"], value))
            shared = like("mul", shared, gate)
        return like("add", routed, shared)
    return routed


def dense(builder: Builder, weights: LayerWeights, value: Value, *, suffix: str = "") -> Value:
    """Up, gate, activation and down."""
    up_name, gate_name, down_name = f"ffn_up{suffix}", f"ffn_gate{suffix}", f"ffn_down{suffix}"
    if up_name not in weights or down_name not in weights:  # a block without an MLP
        return value
    up = weights.linear(value, up_name)
    down = weights[down_name]
    if gate_name in weights:
        gate = weights.linear(value, gate_name)
        if builder.rules.fused_glu:
            made = new("glu", "f32", gate.shape, gate, up)
        else:
            made = like("mul", like("unary", gate), up)
    elif up.shape[0] == 2 * down.shape[0]:
        made = _halves(builder, up)
    else:
        made = like("unary", up)
    return builder.linear(made, down, weights.bias(down_name))


def _halves(builder: Builder, up: Value) -> Value:
    """Gate and up in one matrix."""
    half = four(up.shape[0] // 2, *up.shape[1:])
    if builder.rules.fused_glu:
        return new("glu", "f32", half, up)
    first, second = (contiguous(view(up, half, up.strides)) for _ in range(2))
    return like("mul", like("unary", first), second)


def experts(builder: Builder, layer: Layer, weights: LayerWeights, value: Value) -> Value:
    """Routed experts: choose, multiply each token with its own, weigh and sum."""
    if layer.mlp is None or not layer.mlp.experts_per_token:
        raise missing_weight(weights.index, "expert_used_count")
    count, used = layer.mlp.num_experts, layer.mlp.experts_per_token
    hidden, tokens = value.shape[0], value.shape[1]
    logits = weights.linear(value, "ffn_gate_inp")
    probabilities = like("soft_max", logits)
    choice = probabilities
    correction = weights.bias("exp_probs_b") or weights.get("exp_probs_b")
    if correction is not None:
        probabilities = like("unary", logits)
        choice = like("add", probabilities, correction)
    order = new("argsort", "i32", choice.shape, choice)
    chosen = view(order, four(used, tokens), order.strides)
    routing = get_rows(reshape(probabilities, 1, count, tokens), chosen)
    if builder.traits.norms_expert_weights:
        flat = reshape(routing, used, tokens)
        total = new("sum_rows", "f32", four(1, tokens), flat)
        if builder.rules.early_routing:
            total = like("clamp", total)
        routing = reshape(like("div", flat, total), 1, used, tokens)
    if builder.rules.early_routing:
        builder.graph.expand(routing)
    rows = reshape(value, hidden, 1, tokens)
    made = _expert_activation(builder, weights, rows, chosen)
    out = matmul_experts(weights["ffn_down_exps"], made, chosen)
    bias = weights.bias("ffn_down_exps")
    if bias is not None:
        out = like("add_id", out, bias, chosen)
    out = like("mul", out, routing)
    return _sum_experts(builder, out, used)


def _expert_activation(builder: Builder, weights: LayerWeights, rows: Value, chosen: Value) -> Value:
    if "ffn_gate_up_exps" in weights:
        both = matmul_experts(weights["ffn_gate_up_exps"], rows, chosen)
        half = four(both.shape[0] // 2, *both.shape[1:])
        return new("glu", "f32", half, view(both, half, both.strides), view(both, half, both.strides))
    up = matmul_experts(weights["ffn_up_exps"], rows, chosen)
    if (bias := weights.bias("ffn_up_exps")) is not None:
        up = like("add_id", up, bias, chosen)
    if "ffn_gate_exps" not in weights:
        return like("unary", up)
    gate = matmul_experts(weights["ffn_gate_exps"], rows, chosen)
    if (bias := weights.bias("ffn_gate_exps")) is not None:
        gate = like("add_id", gate, bias, chosen)
    if builder.rules.fused_glu:
        return new("glu", "f32", gate.shape, gate, up)
    return like("mul", up, like("unary", gate))


def _sum_experts(builder: Builder, out: Value, used: int) -> Value:
    hidden, tokens = out.shape[0], out.shape[2]
    strides = (out.strides[0], out.strides[2], out.strides[3], out.strides[3])
    parts = [view(out, four(hidden, tokens), strides) for _ in range(used)]
    if builder.rules.early_experts:
        builder.graph.expand(out)
        for part in parts:
            builder.graph.expand(part)
    total = parts[0]
    for part in parts[1:]:
        total = like("add", total, part)
        if builder.rules.early_experts:
            builder.graph.expand(total)
    return contiguous(total) if used == 1 else total
