"""GLM-4.1V and GLM-4.5V: a tower with gated MLPs whose patches are merged by a convolution.

Source: transformers 5.23, `models/{glm4v,glm4v_moe}/modeling_*.py`; vLLM 0.33.0, `model_executor/models/glm4_1v.py`.
The pixel limits are the releases' preprocessor configs: an image of 9,633,792 pixels over two equal frames, a video
of 30,000 tokens. Up to 0.13 vLLM sized a single image as one of sixteen frames, which gave 3,721 tokens.
"""

from __future__ import annotations

from math import isqrt

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import defaults_of, merged, read_language, wrap
from memplan.introspect.families.qwen_media import Patches, read_patches
from memplan.introspect.families.vision import grid_side
from memplan.introspect.towers import TIMM, Shape
from memplan.records import replace

_IMAGE_PIXELS = 9_633_792
_VIDEO_TOKENS = 30_000


def glm4v(config: Config, name: str) -> ModelSpec:
    """GLM-4.1V, and GLM-4.5V with routed experts in its language model."""
    default_type = "glm4v_moe_text" if "moe" in config.str("model_type") else "glm4v_text"
    text = read_language(config, name, default_type=default_type, extra=_head_width(config, default_type))
    vision = merged(config, "vision_config", {})
    shape = towers.read_shape(vision, hidden=1536, intermediate=13696, num_layers=24, num_heads=12)
    patches = read_patches(vision)
    side = max(isqrt(_IMAGE_PIXELS // patches.frames) // (patches.size * patches.merge), 1)
    image = side**2
    media = (
        towers.image(shape, tokens=image, patches=image * patches.merge**2),
        towers.video(
            shape, step_tokens=1, step_patches=patches.merge**2, max_steps=_VIDEO_TOKENS, reserved_tokens=image
        ),
    )
    tower = towers.tower(Role.VISION, "model.visual.", _tensors(vision, shape, patches), media=media)
    return wrap(config, text, (tower,), model="model.language_model")


def _head_width(config: Config, model_type: str) -> dict[str, object]:
    """The width of a head, which these classes take from the hidden size where the plain GLM has a default."""
    keys = merged(config, "text_config", {}) if config.has("text_config") else config
    part = Config({**defaults_of(model_type), **keys.raw()}, path=keys.path)
    if part.has("head_dim"):
        return {}
    hidden, num_heads = part.int("hidden_size"), part.int("num_attention_heads")
    return {"head_dim": blocks.exact_div(hidden, num_heads, "hidden size", "heads")}


def _tensors(vision: Config, shape: Shape, patches: Patches) -> tuple[Tensor, ...]:
    """The tower. Its MLPs are as wide as what it hands on; `intermediate_size` is the merger's."""
    hidden, width = shape.hidden, vision.int("out_hidden_size", default=4096)
    side = grid_side(towers.read_square(vision, "image_size", 336), patches.size)
    style = replace(
        TIMM,
        mlp=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        qkv_bias=vision.bool("attention_bias", default=False),
        out_bias=False,
        mlp_bias=False,
        norm_bias=False,
    )
    kernel = (patches.frames, patches.size, patches.size)
    merger = ("merger.gate_proj", "merger.up_proj", "merger.down_proj")
    return (
        towers.table("embeddings.position_embedding", side**2, hidden),
        *towers.conv("patch_embed.proj", hidden, patches.channels, *kernel, bias=True),
        *towers.stack("blocks", towers.layer(style, replace(shape, intermediate=width)), shape.num_layers),
        *towers.dense("merger.proj", width, width, bias=False),
        *blocks.norm("merger.post_projection_norm", width, bias=True),
        *towers.feed_forward(merger, width, shape.intermediate, bias=False),
        *blocks.norm("post_conv_layernorm", hidden),
        *towers.conv("downsample", width, hidden, patches.merge, patches.merge, bias=True),
        *blocks.norm("post_layernorm", hidden),
    )
