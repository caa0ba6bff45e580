"""The vision towers that several wrappers share: CLIP, SigLIP, SigLIP 2, Pixtral and InternViT, by their config's
`model_type`.

Source: transformers 5.23, `models/{clip,siglip,siglip2,pixtral}/modeling_*.py`, and OpenGVLab's
`modeling_intern_vit.py`. Tensor names are relative to the tower's own prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memplan.domain.tensors import Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.towers import Shape, Style
from memplan.records import dataclass, replace

INTERN_VIT = Style(attention=("attn.qkv", "attn.proj"), mlp=("mlp.fc1", "mlp.fc2"), norms=("norm1", "norm2"))
PIXTRAL = Style(
    attention=("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    mlp=("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"),
    norms=("attention_norm", "ffn_norm"),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    norm_bias=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """A vision tower: its widths, its tensors, and the grid it lays over a square image."""

    shape: Shape
    tensors: tuple[Tensor, ...]
    image_size: int
    patch_size: int
    class_token: bool = False

    @property
    def side(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Vectors that the tower works on for one image."""
        return self.side**2 + self.class_token


def read_vision(config: Config, *, default_type: str = "clip_vision_model") -> Vision:
    """Return the tower that a `vision_config` describes. Raises: UnsupportedModel for a tower that is not known."""
    model_type = config.str("model_type", default=default_type)
    if model_type not in TOWERS:
        raise UnsupportedModel(f"unknown vision tower: `{model_type}`", hint="try --introspect torch")
    return TOWERS[model_type](config)


def grid_side(image_size: int, patch_size: int) -> int:
    """Patches along one side. Raises: UnsupportedModel when the image is smaller than a patch."""
    if patch_size > image_size:
        raise UnsupportedModel(f"image size {image_size} is smaller than patch size {patch_size}")
    return image_size // patch_size


def clip(config: Config) -> Vision:
    """CLIP's ViT: a class token, a convolution without bias, norms before and after."""
    shape = towers.read_shape(config)
    image, patch = towers.read_square(config, "image_size", 224), towers.read_square(config, "patch_size", 32)
    hidden = shape.hidden
    tensors = (
        towers.parameter("embeddings.class_embedding", hidden),
        *towers.conv("embeddings.patch_embedding", hidden, config.int("num_channels", default=3), patch, patch),
        towers.table("embeddings.position_embedding", grid_side(image, patch) ** 2 + 1, hidden),
        *blocks.norm("pre_layrnorm", hidden, bias=True),
        *towers.stack("encoder.layers", towers.layer(towers.CLIP, shape), shape.num_layers),
        *blocks.norm("post_layernorm", hidden, bias=True),
    )
    return Vision(shape=shape, tensors=tensors, image_size=image, patch_size=patch, class_token=True)


def siglip(config: Config) -> Vision:
    """SigLIP's ViT: no class token, a convolution with bias, and a pooling head unless the config rules it out."""
    shape = towers.read_shape(config)
    image, patch = towers.read_square(config, "image_size", 224), towers.read_square(config, "patch_size", 16)
    embedding = towers.conv(
        "embeddings.patch_embedding", shape.hidden, config.int("num_channels", default=3), patch, patch, bias=True
    )
    tensors = (
        *embedding,
        towers.table("embeddings.position_embedding", grid_side(image, patch) ** 2, shape.hidden),
        *_siglip_body(config, shape),
    )
    return Vision(shape=shape, tensors=tensors, image_size=image, patch_size=patch)


def siglip2(config: Config) -> Vision:
    """SigLIP 2 for any resolution: patches come flattened, and the positions are a grid of `num_patches`."""
    shape = towers.read_shape(config)
    patch = towers.read_square(config, "patch_size", 16)
    positions = config.int("num_patches", default=256)
    pixels = config.int("num_channels", default=3) * patch * patch
    tensors = (
        *towers.dense("embeddings.patch_embedding", shape.hidden, pixels),
        towers.table("embeddings.position_embedding", positions, shape.hidden),
        *_siglip_body(config, shape),
    )
    return Vision(shape=shape, tensors=tensors, image_size=int(positions**0.5) * patch, patch_size=patch)


def _siglip_body(config: Config, shape: Shape) -> tuple[Tensor, ...]:
    head = pooling_head(shape) if config.bool("vision_use_head", default=True) else ()
    return (
        *towers.stack("encoder.layers", towers.layer(towers.CLIP, shape), shape.num_layers),
        *blocks.norm("post_layernorm", shape.hidden, bias=True),
        *head,
    )


def pooling_head(shape: Shape) -> tuple[Tensor, ...]:
    """SigLIP's attention pooling: one query over all patches, then an MLP."""
    hidden = shape.hidden
    return (
        towers.parameter("head.probe", 1, 1, hidden),
        towers.parameter("head.attention.in_proj_weight", 3 * hidden, hidden),
        towers.parameter("head.attention.in_proj_bias", 3 * hidden),
        *towers.dense("head.attention.out_proj", hidden, hidden),
        *blocks.norm("head.layernorm", hidden, bias=True),
        *towers.dense("head.mlp.fc1", shape.intermediate, hidden),
        *towers.dense("head.mlp.fc2", hidden, shape.intermediate),
    )


def pixtral(config: Config) -> Vision:
    """Pixtral's ViT: rotary positions, gated MLPs, RMS norms, no biases; `image_size` bounds either side."""
    shape = towers.read_shape(config, hidden=1024, intermediate=4096, num_layers=24, num_heads=16)
    shape = replace(shape, head_width=config.optional_int("head_dim", minimum=1) or 0)
    image, patch = towers.read_square(config, "image_size", 1024), towers.read_square(config, "patch_size", 16)
    tensors = (
        *towers.conv("patch_conv", shape.hidden, config.int("num_channels", default=3), patch, patch),
        *blocks.norm("ln_pre", shape.hidden),
        *towers.stack("transformer.layers", towers.layer(PIXTRAL, shape), shape.num_layers),
    )
    return Vision(shape=shape, tensors=tensors, image_size=image, patch_size=patch)


def intern_vit(config: Config) -> Vision:
    """InternViT: a class token, fused attention, a scale on both halves of a layer, optional query-key norms."""
    shape = towers.read_shape(config, hidden=3200, intermediate=12800, num_layers=48, num_heads=25)
    image, patch = towers.read_square(config, "image_size", 224), towers.read_square(config, "patch_size", 14)
    hidden = shape.hidden
    style = replace(
        INTERN_VIT,
        qkv_bias=config.bool("qkv_bias", default=False),
        norm_bias=config.str("norm_type", default="rms_norm") == "layer_norm",
    )
    head_norms = blocks.norms(("attn.q_norm", "attn.k_norm"), hidden)
    one = (
        towers.parameter("ls1", hidden),
        towers.parameter("ls2", hidden),
        *towers.layer(style, shape),
        *(head_norms if config.bool("qk_normalization", default=True) else ()),
    )
    tensors = (
        towers.parameter("embeddings.class_embedding", 1, 1, hidden),
        *towers.conv(
            "embeddings.patch_embedding", hidden, config.int("num_channels", default=3), patch, patch, bias=True
        ),
        towers.parameter("embeddings.position_embedding", 1, grid_side(image, patch) ** 2 + 1, hidden),
        *towers.stack("encoder.layers", one, shape.num_layers),
    )
    return Vision(shape=shape, tensors=tensors, image_size=image, patch_size=patch, class_token=True)


TOWERS: Mapping[str, Callable[[Config], Vision]] = {
    "clip_vision_model": clip,
    "siglip_vision_model": siglip,
    "siglip2_vision_model": siglip2,
    "pixtral": pixtral,
    "intern_vit_6b": intern_vit,
}
