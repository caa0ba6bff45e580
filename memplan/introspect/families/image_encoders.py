"""Encoders of images, and of images and text side by side: ViT, DINOv2, CLIP, SigLIP.

Source: transformers 5.23, `models/{vit,dinov2,dinov2_with_registers,clip,siglip}/modeling_*.py`. Names follow published
checkpoints, which transformers 5 renames as it loads them.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families import encoder, vision
from memplan.introspect.families.decoder import architecture
from memplan.introspect.families.encoder import Body, Sizes
from memplan.introspect.families.nested import merged
from memplan.introspect.families.vision import Vision
from memplan.introspect.towers import BERT, Shape
from memplan.records import replace

_VIT = replace(
    BERT,
    attention=(*(f"attention.attention.{name}" for name in ("query", "key", "value")), "attention.output.dense"),
    norms=("layernorm_before", "layernorm_after"),
)
_DINOV2 = replace(_VIT, mlp=("mlp.fc1", "mlp.fc2"), norms=("norm1", "norm2"))
_VIT_BODIES: Mapping[str, Body] = {"ForImageClassification": Body(head=encoder.classifier())}


def vit(config: Config, name: str) -> ModelSpec:
    """ViT: a class token, learned positions, and in the bare model a pooler."""
    shape = towers.read_shape(config)
    body = encoder.find_body(config, _VIT_BODIES)
    prefix = "vit." if body else ""
    pooler_width = config.int("pooler_output_size", default=shape.hidden)
    style = replace(_VIT, qkv_bias=config.bool("qkv_bias", default=True))
    side = _side(config, patch=16)
    bare = (
        towers.parameter("embeddings.cls_token", 1, 1, shape.hidden),
        towers.parameter("embeddings.position_embeddings", 1, side**2 + 1, shape.hidden),
        *_patches(config, "embeddings.patch_embeddings.projection", shape.hidden, patch=16),
        *blocks.norm("layernorm", shape.hidden, bias=True),
        *(towers.dense("pooler.dense", pooler_width, shape.hidden) if body is None else ()),
    )
    sizes = Sizes(hidden=shape.hidden, labels=encoder.num_labels(config))
    return encoder.encoder_spec(
        config,
        name,
        shape,
        layers=(encoder.encoder_layer(shape, towers.layer(style, shape)),) * shape.num_layers,
        shared=(*towers.under(prefix, bare), *(body.head(sizes) if body else ())),
        layer_prefix=f"{prefix}encoder.layer.",
        max_context=side**2 + 1,
    )


def dinov2(config: Config, name: str) -> ModelSpec:
    """DINOv2: ViT with a scale on both halves of a layer, a mask token, and in later releases register tokens."""
    hidden = config.int("hidden_size", default=768)
    ratio = config.int("mlp_ratio", default=4)
    gated = config.bool("use_swiglu_ffn", default=False)
    shape = Shape(
        hidden=hidden,
        intermediate=(hidden * ratio * 2 // 3 + 7) // 8 * 8 if gated else hidden * ratio,
        num_layers=config.num_layers("num_hidden_layers", default=12),
        num_heads=config.int("num_attention_heads", default=12),
    )
    registers = config.str("model_type") == "dinov2_with_registers"
    body = encoder.find_body(config, _DINOV2_BODIES)
    prefix = f"{config.str('model_type')}." if body else ""
    side = _side(config, patch=14)
    masked = config.bool("use_mask_token", default=True)
    bare = (
        towers.parameter("embeddings.cls_token", 1, 1, hidden),
        *((towers.parameter("embeddings.mask_token", 1, hidden),) if masked else ()),
        *(_registers(config, hidden) if registers else ()),
        towers.parameter("embeddings.position_embeddings", 1, side**2 + 1, hidden),
        *_patches(config, "embeddings.patch_embeddings.projection", hidden, patch=14),
        *blocks.norm("layernorm", hidden, bias=True),
    )
    layer = encoder.encoder_layer(shape, _dinov2_layer(config, shape, gated=gated), gated=gated)
    sizes = Sizes(hidden=2 * hidden, labels=encoder.num_labels(config))
    return encoder.encoder_spec(
        config,
        name,
        shape,
        layers=(layer,) * shape.num_layers,
        shared=(*towers.under(prefix, bare), *(body.head(sizes) if body else ())),
        layer_prefix=f"{prefix}encoder.layer.",
        max_context=side**2 + 1,
    )


def clip(config: Config, name: str) -> ModelSpec:
    """CLIP: the text encoder is the model's layers, the vision encoder a tower; one scale joins them."""
    text, sight = merged(config, "text_config", {}), vision.clip(merged(config, "vision_config", {}))
    shape = _text_shape(text)
    width = config.int("projection_dim", default=512)
    extra = (
        towers.parameter("logit_scale"),
        *towers.dense("text_projection", width, shape.hidden, bias=False),
        *towers.dense("visual_projection", width, sight.shape.hidden, bias=False),
    )
    return _pair(config, name, text, sight, shape, shared=(*_clip_text(text, shape), *extra))


def siglip(config: Config, name: str) -> ModelSpec:
    """SigLIP: as CLIP, with a bias beside the scale and no projections but the text head's own."""
    text, sight = merged(config, "text_config", {}), vision.siglip(merged(config, "vision_config", {}))
    shape = towers.read_shape(text)
    extra = (towers.parameter("logit_scale", 1), towers.parameter("logit_bias", 1))
    return _pair(config, name, text, sight, shape, shared=(*_siglip_text(text, shape), *extra))


def clip_text(config: Config, name: str) -> ModelSpec:
    """CLIP's text encoder alone, with its projection in `CLIPTextModelWithProjection`."""
    shape = _text_shape(config)
    width = config.int("projection_dim", default=512)
    projected = architecture(config).endswith("WithProjection")
    projection = towers.dense("text_projection", width, shape.hidden, bias=False) if projected else ()
    return _text_alone(config, name, shape, (*_clip_text(config, shape), *projection))


def siglip_text(config: Config, name: str) -> ModelSpec:
    """SigLIP's text encoder alone."""
    shape = towers.read_shape(config)
    return _text_alone(config, name, shape, _siglip_text(config, shape))


def clip_vision(config: Config, name: str) -> ModelSpec:
    """CLIP's vision encoder alone, with its projection in `CLIPVisionModelWithProjection`."""
    sight = vision.clip(config)
    width = config.int("projection_dim", default=512)
    projected = architecture(config).endswith("WithProjection")
    projection = towers.dense("visual_projection", width, sight.shape.hidden, bias=False) if projected else ()
    return _vision_alone(config, name, sight, projection)


def siglip_vision(config: Config, name: str) -> ModelSpec:
    """SigLIP's vision encoder alone."""
    return _vision_alone(config, name, vision.siglip(config), ())


def siglip2_vision(config: Config, name: str) -> ModelSpec:
    """SigLIP 2's vision encoder for any resolution, alone."""
    return _vision_alone(config, name, vision.siglip2(config), ())


def _dinov2_layer(config: Config, shape: Shape, *, gated: bool) -> tuple[Tensor, ...]:
    style = replace(_DINOV2, qkv_bias=config.bool("qkv_bias", default=True))
    scales = tuple(towers.parameter(f"layer_scale{half}.lambda1", shape.hidden) for half in (1, 2))
    if not gated:
        return (*towers.layer(style, shape), *scales)
    return (
        *towers.attention(style.attention, shape, style),
        *towers.dense("mlp.weights_in", 2 * shape.intermediate, shape.hidden),
        *towers.dense("mlp.weights_out", shape.hidden, shape.intermediate),
        *blocks.norms(style.norms, shape.hidden, bias=True),
        *scales,
    )


def _registers(config: Config, hidden: int) -> tuple[Tensor, ...]:
    return (towers.parameter("embeddings.register_tokens", 1, config.int("num_register_tokens", default=4), hidden),)


_DINOV2_BODIES: Mapping[str, Body] = {"ForImageClassification": Body(head=encoder.classifier())}


def _side(config: Config, *, patch: int) -> int:
    return vision.grid_side(
        towers.read_square(config, "image_size", 224), towers.read_square(config, "patch_size", patch)
    )


def _patches(config: Config, name: str, hidden: int, *, patch: int) -> tuple[Tensor, ...]:
    size = towers.read_square(config, "patch_size", patch)
    return towers.conv(name, hidden, config.int("num_channels", default=3), size, size, bias=True)


def _text_shape(config: Config) -> Shape:
    """The widths of CLIP's text encoder."""
    return towers.read_shape(config, hidden=512, intermediate=2048, num_layers=12, num_heads=8)


def _text_embeddings(config: Config, shape: Shape, *, vocab: int, positions: int) -> tuple[Tensor, ...]:
    return (
        encoder.word_embeddings(
            "text_model.embeddings.token_embedding", config.int("vocab_size", default=vocab), shape.hidden
        ),
        towers.table(
            "text_model.embeddings.position_embedding",
            config.int("max_position_embeddings", default=positions),
            shape.hidden,
        ),
        *blocks.norm("text_model.final_layer_norm", shape.hidden, bias=True),
    )


def _clip_text(config: Config, shape: Shape) -> tuple[Tensor, ...]:
    return _text_embeddings(config, shape, vocab=49408, positions=77)


def _siglip_text(config: Config, shape: Shape) -> tuple[Tensor, ...]:
    width = config.int("projection_size", default=shape.hidden)
    return (
        *_text_embeddings(config, shape, vocab=32000, positions=64),
        *towers.dense("text_model.head", width, shape.hidden),
    )


def _pair(
    config: Config, name: str, text: Config, sight: Vision, shape: Shape, *, shared: tuple[Tensor, ...]
) -> ModelSpec:
    spec = _text_alone(config, name, shape, shared)
    media = (towers.image(sight.shape, tokens=sight.patches, patches=sight.patches),)
    tower = towers.tower(Role.VISION, "vision_model.", sight.tensors, media=media)
    return replace(spec, towers=(tower,), max_context_tokens=text.int("max_position_embeddings", default=77))


def _text_alone(config: Config, name: str, shape: Shape, shared: tuple[Tensor, ...]) -> ModelSpec:
    return encoder.encoder_spec(
        config,
        name,
        shape,
        layers=(encoder.encoder_layer(shape, towers.layer(towers.CLIP, shape)),) * shape.num_layers,
        shared=shared,
        layer_prefix="text_model.encoder.layers.",
        vocab=shared[0].shape[0],
        max_context=config.int("max_position_embeddings", default=77),
    )


def _vision_alone(config: Config, name: str, sight: Vision, extra: tuple[Tensor, ...]) -> ModelSpec:
    """A vision tower as a model of its own: its layers become the model's layers."""
    outside = tuple(tensor for tensor in sight.tensors if not tensor.name.startswith("encoder.layers."))
    layer = encoder.encoder_layer(sight.shape, towers.layer(towers.CLIP, sight.shape))
    return encoder.encoder_spec(
        config,
        name,
        sight.shape,
        layers=(layer,) * sight.shape.num_layers,
        shared=(*towers.under("vision_model.", outside), *extra),
        layer_prefix="vision_model.encoder.layers.",
        max_context=sight.patches,
    )
