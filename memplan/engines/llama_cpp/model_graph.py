"""The graph that llama.cpp reserves memory for: embedding, layers, head, for the largest step that may come.

Not every layer is built: in a run of equal layers on the same device the third and later ones need what the second
needed, so only the first two and the last of a run are built, in their order.
"""

from __future__ import annotations

from memplan.domain.attention import LinearState, SharedKV
from memplan.domain.model import Layer, ModelSpec
from memplan.engines.llama_cpp.ggml_graph import Graph, Value, get_rows, like, matmul
from memplan.engines.llama_cpp.graph_attention import attention
from memplan.engines.llama_cpp.graph_builder import Batch, Builder, GraphRules, LayerWeights, Placement
from memplan.engines.llama_cpp.graph_encoder import encoder_layer, unknown_mixer
from memplan.engines.llama_cpp.graph_feed_forward import feed_forward
from memplan.engines.llama_cpp.graph_recurrent import is_modelled, recurrent
from memplan.engines.llama_cpp.graph_traits import traits_of
from memplan.records import replace


def build_graph(
    spec: ModelSpec, batch: Batch, placement: Placement, rules: GraphRules, *, every_layer: bool = False
) -> Graph:
    """Return the graph of one worst-case step of a model that goes by ggml's names."""
    shared = {tensor.name: tensor for tensor in spec.shared}
    builder = Builder(traits=traits_of(spec.model_type), rules=rules, batch=batch, placement=placement, shared=shared)
    value = _embedding(builder, spec)
    for index in range(spec.num_layers) if every_layer else representative_layers(spec, placement):
        layer = _with_owner(spec, spec.layers[index])
        value = _layer(builder, layer, index, value, is_last=index == spec.num_layers - 1)
    builder.graph.expand(_head(builder, spec, value))
    return builder.graph


def _with_owner(spec: ModelSpec, layer: Layer) -> Layer:
    """A layer that reads another's cache, with that cache beside the note that it is shared."""
    shared = next((kept for kept in layer.caches if isinstance(kept, SharedKV)), None)
    if shared is None or not 0 <= shared.source_layer < spec.num_layers:
        return layer
    return replace(layer, caches=(shared, *spec.layers[shared.source_layer].caches))


def representative_layers(spec: ModelSpec, placement: Placement) -> list[int]:
    """The layers that are built: the first two and the last two of each run of equal layers on one device."""
    shapes = {id(layer): _shape_of(layer) for layer in spec.layers}
    keys = [
        (
            id(spec.layers[index].caches),
            shapes[id(spec.layers[index])],
            placement.layers[index],
            placement.caches[index],
            placement.divided and tuple(placement.weight_device(index, one.name) for one in spec.layers[index].tensors),
        )
        for index in range(spec.num_layers)
    ]
    kept = []
    for index, key in enumerate(keys):
        near = [keys[other] for other in range(max(0, index - 2), min(len(keys), index + 3)) if other != index]
        if near.count(key) < 4 or len(near) < 4:
            kept.append(index)
    return kept


def _shape_of(layer: Layer) -> tuple[object, ...]:
    """What makes two layers alike for the graph: everything but quantization types."""
    return (layer.kind, *((tensor.name, tensor.shape) for tensor in layer.tensors))


def _embedding(builder: Builder, spec: ModelSpec) -> Value:
    """Rows of the embedding table on the CPU, scaled, normed and with positions where an architecture has them."""
    rules, batch = builder.rules, builder.batch
    value = get_rows(
        _host_weight(builder, "token_embd.weight"), builder.input("tokens", "i32", batch.tokens), name="embd"
    )
    if rules.embeds_either:
        builder.graph.expand(value)
        builder.graph.expand(builder.input("embeddings", "f32", spec.hidden_size, batch.tokens))
    if builder.traits.scales_embedding:
        value = like("scale", value)
    if "token_types.weight" in builder.shared:
        value = like("add", value, _host_weight(builder, "token_types.weight"))
    if "position_embd.weight" in builder.shared:
        positions = builder.input("positions", "i32", batch.tokens)
        placed = get_rows(_host_weight(builder, "position_embd.weight"), positions)
        value = like("add", placed, value) if builder.traits.is_encoder else like("add", value, placed)
    if "token_embd_norm.weight" in builder.shared:
        bias = _host_weight(builder, "token_embd_norm.bias") if "token_embd_norm.bias" in builder.shared else None
        value = builder.norm(value, _host_weight(builder, "token_embd_norm.weight"), bias, None)
    return value


def _host_weight(builder: Builder, name: str) -> Value:
    return builder.make_weight(builder.shared[name], builder.placement.cpu, -1)


def _layer(builder: Builder, layer: Layer, index: int, value: Value, *, is_last: bool) -> Value:
    weights = builder.weights(layer, index)
    if "layer_output_norm" in weights:
        return encoder_layer(builder, layer, weights, value, is_last=is_last)
    normed = weights.norm(value, "attn_norm")
    mixed = _mixer(builder, layer, weights, weights.norm(value, "attn_norm_2") if "attn_norm_2" in weights else normed)
    residual = value
    if is_last and builder.rules.selects_rows:
        rows = builder.input("outputs", "i32", builder.batch.outputs)
        mixed, residual = get_rows(mixed, rows), get_rows(residual, rows)
        if builder.traits.parallel:
            normed = get_rows(normed, rows)
    if builder.traits.parallel:
        fed = feed_forward(builder, layer, weights, _second_norm(weights, normed, residual))
        parts = {"fed": fed, "mixed": mixed, "residual": residual}
        first, second, third = (parts[name] for name in builder.traits.parallel)
        return like("add", like("add", first, second), third, name="l_out")
    mixed = weights.norm(mixed, "post_attention_norm")
    joined = like("add", mixed, residual, name="ffn_inp")
    second_norm = "ffn_norm" if "ffn_norm" in weights else "attn_output_norm"
    fed = feed_forward(builder, layer, weights, weights.norm(joined, second_norm))
    fed = weights.norm(fed, "post_ffw_norm")
    return like("add", *((joined, fed) if builder.traits.residual_first else (fed, joined)), name="l_out")


def _second_norm(weights: LayerWeights, normed: Value, residual: Value) -> Value:
    """What the MLP beside an attention reads: its own norm of the input, or the attention's."""
    return weights.norm(residual, "ffn_norm") if "ffn_norm" in weights else normed


def _mixer(builder: Builder, layer: Layer, weights: LayerWeights, value: Value) -> Value:
    """What mixes tokens: attention, a recurrence, both side by side, or nothing."""
    state = next((kept for kept in layer.caches if isinstance(kept, LinearState)), None)
    mixed = []
    if state is not None and is_modelled(weights):
        mixed.append(recurrent(builder, state, weights, value))
    elif state is not None:
        mixed.append(unknown_mixer(builder, weights, value))
    if (
        layer.num_heads
        and ("attn_output" in weights or "attn_q" in weights or "attn_qkv" in weights)
        and not (state is not None and "attn_output" not in weights)
    ):
        mixed.append(attention(builder, layer, weights, value))
    if not mixed:
        return unknown_mixer(builder, weights, value) if layer.num_heads else value
    return mixed[0] if len(mixed) == 1 else like("add", *mixed)


def _head(builder: Builder, spec: ModelSpec, value: Value) -> Value:
    shared = {tensor.name: tensor for tensor in spec.shared}
    placement = builder.placement
    scale = shared.get("output_norm.weight")
    bias = shared.get("output_norm.bias")
    if scale is not None:
        value = builder.norm(
            value,
            builder.make_weight(scale, placement.output, -2),
            builder.make_weight(bias, placement.output, -2) if bias else None,
            None,
        )
    if builder.traits.is_encoder:
        return value
    table = shared.get("output.weight") or shared["token_embd.weight"]
    logits = matmul(builder.make_weight(table, placement.head, -2), value, name="result_output")
    if "output.bias" in shared:
        logits = like("add", logits, builder.make_weight(shared["output.bias"], placement.output, -2))
    if builder.traits.scales_logits:
        logits = like("scale", logits)
    return logits
