"""MiniMax M3 with its vision tower: CLIP's layers under rotary positions, two MLPs that map and merge patches.

Source: transformers 5.23, `models/minimax_m3_vl/modeling_minimax_m3_vl.py`; vLLM 0.33.0,
`models/minimax_m3/common/{vision_tower,mm_preprocess}.py`: an image of 672 x 672 pixels, the default of the
processor, and a video of 500 frames with 602,112 pixels each.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.towers import Shape

_IMAGE_SIDE = 672
_VIDEO_PIXELS, _VIDEO_FRAMES = 602_112, 500


def minimax_m3_vl(config: Config, name: str) -> ModelSpec:
    """MiniMax M3: every patch is mapped to the language model's width, then 2 x 2 of them to one token."""
    text = read_language(config, name, default_type="minimax_m3")
    vision = merged(config, "vision_config", {})
    shape = towers.read_shape(vision, hidden=1280, intermediate=5120, num_layers=32, num_heads=16)
    patch = towers.read_square(vision, "patch_size", 14)
    compression = merged(vision, "img_token_compression_config", {})
    merge = compression.int("spatial_merge_size", default=2)
    frames = compression.int("temporal_patch_size", default=2)
    hidden = text.hidden_size
    middle = config.int("projector_hidden_size", default=hidden)
    unit = patch * merge
    image, video = max(_IMAGE_SIDE // unit, 1) ** 2, max(_VIDEO_PIXELS // unit**2, 1)
    media = (
        towers.image(shape, tokens=image, patches=image * merge**2),
        towers.video(
            shape, step_tokens=video, step_patches=video * merge**2, max_steps=max(_VIDEO_FRAMES // frames, 1)
        ),
    )
    projector = (
        *towers.bridge(
            ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"), (shape.hidden, middle, hidden)
        ),
        *towers.bridge(("patch_merge_mlp.linear_1", "patch_merge_mlp.linear_2"), (hidden * merge**2, middle, hidden)),
    )
    tower = towers.tower(Role.VISION, "vision_tower.vision_model.", _tensors(vision, shape, patch, frames), media=media)
    return wrap(config, text, (tower, towers.projector(projector)), prefix="language_model.")


def _tensors(vision: Config, shape: Shape, patch: int, frames: int) -> tuple[Tensor, ...]:
    channels = vision.int("num_channels", default=3)
    return (
        *towers.conv("embeddings.patch_embedding", shape.hidden, channels, frames, patch, patch),
        *blocks.norm("pre_layrnorm", shape.hidden, bias=True),
        *towers.stack("encoder.layers", towers.layer(towers.CLIP, shape), shape.num_layers),
    )
