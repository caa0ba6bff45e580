"""Encoders in llama.cpp's graph: attention within one step without a cache, and layers that norm after they add.

All tokens of an input are one step (`-ub` is the longest input), the mask is as wide as the step. The graph ends with
an embedding of every token.

Not modelled: pooling, whose values are smaller than a layer's; the second mask of encoders with windows.

Source: bert.cpp, modern-bert.cpp and build_attn_inp_no_cache of the snapshot in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from memplan.domain.model import Layer
from memplan.engines.llama_cpp.ggml_graph import Value, contiguous, get_rows, like, matmul
from memplan.engines.llama_cpp.graph_attention import attention
from memplan.engines.llama_cpp.graph_builder import Builder, LayerWeights
from memplan.engines.llama_cpp.graph_feed_forward import feed_forward


def encoder_layer(builder: Builder, layer: Layer, weights: LayerWeights, value: Value, *, is_last: bool) -> Value:
    """A layer that norms what it has added (BERT): attention, norm, MLP, norm."""
    mixed = attention(builder, layer, weights, value)
    residual = value
    if is_last and builder.rules.selects_rows:
        rows = builder.input("outputs", "i32", builder.batch.outputs)
        mixed, residual = get_rows(mixed, rows), get_rows(residual, rows)
    joined = weights.norm(like("add", mixed, residual), "attn_output_norm")
    if "attn_norm_2" in weights:
        joined = weights.norm(like("add", joined, residual), "attn_norm_2")
    fed = feed_forward(builder, layer, weights, joined)
    return weights.norm(like("add", fed, joined), "layer_output_norm")


def unknown_mixer(builder: Builder, weights: LayerWeights, value: Value) -> Value:
    """A mixer that is not modelled step by step: every matrix over the layer's input, all results alive at once."""
    made: list[Value] = []
    for name in weights.tensors:
        base = name.removesuffix(".weight")
        matrix = weights[base] if base != name and not base.startswith("ffn_") else None
        if matrix is not None and len(matrix.shape) > 1 and matrix.shape[1] > 1 and matrix.shape[0] == value.shape[0]:
            made.append(builder.graph.expand(matmul(matrix, value)))
    total = value
    for part in made:
        total = like("add", total, part)
    return contiguous(total)
