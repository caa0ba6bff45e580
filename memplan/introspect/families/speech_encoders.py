"""Encoders of raw sound: wav2vec 2.0, HuBERT and WavLM.

Source: transformers 5.23, `models/{wav2vec2,hubert,wavlm}/modeling_*.py`. The positional convolution is stored with its
weight normalisation, as a length for every tap and a direction.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families import encoder
from memplan.introspect.families.encoder import Body, Sizes
from memplan.introspect.towers import Shape, Style
from memplan.records import replace

_STYLE = Style(
    attention=tuple(f"attention.{name}_proj" for name in ("q", "k", "v", "out")),
    mlp=("feed_forward.intermediate_dense", "feed_forward.output_dense"),
    norms=("layer_norm", "final_layer_norm"),
)
_CONV_WIDTHS = (512,) * 7
_CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)


def speech(config: Config, name: str) -> ModelSpec:
    """Convolutions over the waveform, a map into the encoder, bidirectional layers."""
    model_type = config.str("model_type")
    shape = towers.read_shape(config)
    widths, kernels = _convolutions(config)
    body = encoder.find_body(config, _bodies(config, widths[-1]))
    prefix = f"{model_type}." if body else ""
    bare = (
        *_masked(config, shape.hidden),
        *_feature_extractor(config, widths, kernels),
        *_feature_projection(config, shape.hidden, widths[-1]),
        *_positions(config, shape.hidden),
        *blocks.norm("encoder.layer_norm", shape.hidden, bias=True),
        *_adapter(config, shape.hidden),
    )
    extra = _relative(shape) if model_type == "wavlm" else ()
    layer = encoder.encoder_layer(shape, (*towers.layer(_STYLE, shape), *_layer_adapter(config, shape.hidden), *extra))
    layers = (layer,) * shape.num_layers
    if model_type == "wavlm":
        buckets = config.int("num_buckets", default=320)
        table = towers.table("attention.rel_attn_embed", buckets, shape.num_heads)
        layers = (replace(layer, tensors=(*layer.tensors, table)), *layers[1:])
    sizes = Sizes(
        hidden=_output_width(config, shape.hidden),
        vocab=config.int("vocab_size", default=32),
        labels=encoder.num_labels(config),
    )
    return encoder.encoder_spec(
        config,
        name,
        shape,
        layers=layers,
        shared=(*towers.under(prefix, bare), *(body.head(sizes) if body else ())),
        layer_prefix=f"{prefix}encoder.layers.",
        max_context=1500,
    )


def _convolutions(config: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The widths and kernels of the waveform's convolutions."""
    widths = config.ints("conv_dim", default=_CONV_WIDTHS)
    kernels = config.ints("conv_kernel", default=_CONV_KERNELS)
    if not widths or len(widths) != len(kernels) or min(*widths, *kernels) < 1 or len(widths) > 64:
        raise UnsupportedModel("config keys `conv_dim` and `conv_kernel` must be positive and equally many")
    return widths, kernels


def _masked(config: Config, hidden: int) -> tuple[Tensor, ...]:
    """The vector that masked frames get, where training masks any."""
    probabilities = (config.float("mask_time_prob", default=0.05), config.float("mask_feature_prob", default=0.0))
    return (towers.parameter("masked_spec_embed", hidden),) if max(probabilities) > 0 else ()


def _feature_extractor(config: Config, widths: tuple[int, ...], kernels: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Convolutions with a norm after the first, or after each with `feat_extract_norm` set to `layer`."""
    bias = config.bool("conv_bias", default=False)
    every = config.str("feat_extract_norm", default="group") == "layer"
    tensors: list[Tensor] = []
    for index, (source, width, kernel) in enumerate(zip((1, *widths), widths, kernels, strict=False)):
        prefix = f"feature_extractor.conv_layers.{index}"
        tensors += towers.conv(f"{prefix}.conv", width, source, kernel, bias=bias)
        if every or index == 0:
            tensors += blocks.norm(f"{prefix}.layer_norm", width, bias=True)
    return tuple(tensors)


def _feature_projection(config: Config, hidden: int, width: int) -> tuple[Tensor, ...]:
    normed = config.bool("feat_proj_layer_norm", default=True)
    return (
        *(blocks.norm("feature_projection.layer_norm", width, bias=True) if normed else ()),
        *towers.dense("feature_projection.projection", hidden, width),
    )


def _positions(config: Config, hidden: int) -> tuple[Tensor, ...]:
    kernel = config.int("num_conv_pos_embeddings", default=128)
    groups = config.int("num_conv_pos_embedding_groups", default=16)
    width = blocks.exact_div(hidden, groups, "hidden size", "convolution groups")
    return (
        towers.parameter("encoder.pos_conv_embed.conv.weight_g", 1, 1, kernel),
        towers.parameter("encoder.pos_conv_embed.conv.weight_v", hidden, width, kernel),
        towers.parameter("encoder.pos_conv_embed.conv.bias", hidden),
    )


def _adapter(config: Config, hidden: int) -> tuple[Tensor, ...]:
    """Strided convolutions after the encoder, with `add_adapter`."""
    if not config.bool("add_adapter", default=False):
        return ()
    width, kernel = _output_width(config, hidden), config.int("adapter_kernel_size", default=3)
    layers = config.num_layers("num_adapter_layers", default=3)
    mapped = (
        *towers.dense("adapter.proj", width, hidden),
        *blocks.norm("adapter.proj_layer_norm", width, bias=True),
    )
    convolution = towers.conv("conv", 2 * width, width, kernel, bias=True)
    return (*(mapped if width != hidden else ()), *towers.stack("adapter.layers", convolution, layers))


def _layer_adapter(config: Config, hidden: int) -> tuple[Tensor, ...]:
    """A small bottleneck in every layer, with `adapter_attn_dim` and norms before each half."""
    width = config.optional_int("adapter_attn_dim", minimum=1)
    if not width or not config.bool("do_stable_layer_norm", default=False):
        return ()
    names = ("adapter_layer.linear_1", "adapter_layer.linear_2")
    return (
        *blocks.norm("adapter_layer.norm", hidden, bias=True),
        *towers.bridge(names, (hidden, width, hidden)),
    )


def _output_width(config: Config, hidden: int) -> int:
    return config.int("output_hidden_size", default=hidden) if config.bool("add_adapter", default=False) else hidden


def _relative(shape: Shape) -> tuple[Tensor, ...]:
    """WavLM's gate over relative positions."""
    return (
        towers.parameter("attention.gru_rel_pos_const", 1, shape.num_heads, 1, 1),
        *towers.dense("attention.gru_rel_pos_linear", 8, shape.query_width // shape.num_heads),
    )


def _bodies(config: Config, conv_width: int) -> Mapping[str, Body]:
    """The heads, by architecture class."""
    projected = config.int("classifier_proj_size", default=256)

    def classes(sizes: Sizes) -> tuple[Tensor, ...]:
        return (
            *towers.dense("projector", projected, sizes.hidden),
            *towers.dense("classifier", sizes.labels, projected),
        )

    def characters(sizes: Sizes) -> tuple[Tensor, ...]:
        return blocks.lm_head("lm_head", sizes.vocab, sizes.hidden, bias=True)

    def contrast(sizes: Sizes) -> tuple[Tensor, ...]:
        groups, entries = (
            config.int("num_codevector_groups", default=2),
            config.int("num_codevectors_per_group", default=320),
        )
        width, hidden = config.int("codevector_dim", default=256), sizes.hidden
        joint = config.int("proj_codevector_dim", default=256)
        return (
            towers.parameter("quantizer.codevectors", 1, groups * entries, width // groups),
            *towers.dense("quantizer.weight_proj", groups * entries, conv_width),
            *towers.dense("project_hid", joint, hidden),
            *towers.dense("project_q", joint, width),
        )

    weights = config.bool("use_weighted_layer_sum", default=False)
    layers = config.num_layers(default=12)
    mix = (towers.parameter("layer_weights", layers + 1),) if weights else ()
    return {
        "ForCTC": Body(head=characters),
        "ForPreTraining": Body(head=contrast),
        "ForSequenceClassification": Body(head=lambda sizes: (*classes(sizes), *mix)),
        "ForAudioFrameClassification": Body(head=lambda sizes: (*encoder.classifier()(sizes), *mix)),
    }
