"""InternVL, with its own code (`internvl_chat`) and in transformers (`internvl`).

Source: OpenGVLab's `modeling_internvl_chat.py`, transformers 5.23 `models/internvl/modeling_internvl.py`; vLLM 0.33.0,
`model_executor/models/{internvl,interns1}.py`: an image is cut into as many tiles as the config allows, and with more
than one a thumbnail is added; a video has one tile a frame, as many as the context has room for.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.domain.model import MediaInput, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.families.vision import Vision, grid_side, read_vision
from memplan.introspect.towers import Style
from memplan.records import replace

_MANY_FRAMES = 1 << 20
_WITH_VIDEO = frozenset({"qwen2", "qwen3", "qwen3_moe", "gpt_oss"})
_LANGUAGE_BY_CLASS: Mapping[str, str] = {
    "InternLM2ForCausalLM": "internlm2",
    "LlamaForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
_HF_LAYER = Style(
    attention=(*(f"attention.{name}_proj" for name in "qkv"), "attention.projection_layer"),
    mlp=("mlp.fc1", "mlp.fc2"),
    norms=("layernorm_before", "layernorm_after"),
)
_INTERN_VIT_300M = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def internvl_chat(config: Config, name: str) -> ModelSpec:
    """InternVL 1.5 to 3.5 in the original layout."""
    part = config.sub("llm_config", "text_config")
    classes = part.strs("architectures", default=())
    default_type = _LANGUAGE_BY_CLASS.get(classes[0], "") if classes else ""
    text = read_language(config, name, keys=("llm_config", "text_config"), default_type=default_type)
    vision = read_vision(config.sub("vision_config"), default_type="intern_vit_6b")
    merge = round(1 / _downsample(config)) ** 2
    width = vision.shape.hidden * merge
    projector = (
        *blocks.norm("mlp1.0", width, bias=True),
        *towers.bridge(("mlp1.1", "mlp1.3"), (width, text.hidden_size, text.hidden_size)),
    )
    dynamic = config.bool("dynamic_image_size", default=False)
    tiles = config.int("max_dynamic_patch", default=6) if dynamic else 1
    thumbnail = config.bool("use_thumbnail", default=False)
    moving = part.str("model_type", default=default_type) in _WITH_VIDEO
    media = _media(vision, tiles + 1 if thumbnail and tiles > 1 else tiles, merge, moving=moving)
    return wrap(
        config,
        text,
        (towers.tower(Role.VISION, "vision_model.", vision.tensors, media=media), towers.projector(projector)),
        prefix="language_model.",
    )


def internvl(config: Config, name: str) -> ModelSpec:
    """InternVL as transformers lays it out."""
    text = read_language(config, name, default_type="qwen2")
    vision = _hf_vision(merged(config, "vision_config", {}))
    merge = round(1 / _downsample(config)) ** 2
    width = vision.shape.hidden * merge
    projector = (
        *blocks.norm("multi_modal_projector.layer_norm", width, bias=True),
        *towers.bridge(
            ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"),
            (width, text.hidden_size, text.hidden_size),
        ),
    )
    tower = towers.tower(Role.VISION, "vision_tower.", vision.tensors, media=_media(vision, 13, merge, moving=True))
    return wrap(config, text, (tower, towers.projector(projector)), prefix="language_model.")


def _downsample(config: Config) -> float:
    ratio = config.float("downsample_ratio", default=0.5)
    if not 0.01 <= ratio <= 1:
        raise UnsupportedModel(f"config key `downsample_ratio` must lie between 0.01 and 1, not {ratio}")
    return ratio


def _media(vision: Vision, tiles: int, merge: int, *, moving: bool) -> tuple[MediaInput, ...]:
    per_tile = max(vision.side**2 // merge, 1)
    picture = towers.image(vision.shape, tokens=tiles * per_tile, patches=tiles * vision.patches)
    if not moving:
        return (picture,)
    film = towers.video(
        vision.shape,
        step_tokens=per_tile,
        step_patches=vision.patches,
        max_steps=_MANY_FRAMES,
        reserved_tokens=tiles * per_tile,
    )
    return (picture, film)


def _hf_vision(config: Config) -> Vision:
    shape = towers.read_shape(Config({**_INTERN_VIT_300M, **config.raw()}, path=config.path))
    image, patch = towers.read_square(config, "image_size", 448), towers.read_square(config, "patch_size", 14)
    hidden = shape.hidden
    style = replace(
        _HF_LAYER,
        qkv_bias=config.bool("attention_bias", default=False),
        norm_bias=config.str("norm_type", default="layer_norm") == "layer_norm",
    )
    qk_norms = blocks.norms(("attention.q_norm", "attention.k_norm"), hidden)
    one = (
        *towers.layer(style, shape),
        *(qk_norms if config.bool("use_qk_norm", default=False) else ()),
        towers.parameter("lambda_1", hidden),
        towers.parameter("lambda_2", hidden),
    )
    positions = grid_side(image, patch) ** 2 + 1
    return Vision(
        shape=shape,
        tensors=(
            *_hf_embeddings(config, hidden, patch, positions),
            *towers.stack("encoder.layer", one, shape.num_layers),
            *(() if config.bool("use_mean_pooling", default=True) else blocks.norm("layernorm", hidden, bias=True)),
        ),
        image_size=image,
        patch_size=patch,
        class_token=True,
    )


def _hf_embeddings(config: Config, hidden: int, patch: int, positions: int) -> tuple[Tensor, ...]:
    channels = config.int("num_channels", default=3)
    masked = config.bool("use_mask_token", default=False)
    learned = config.bool("use_absolute_position_embeddings", default=True)
    return (
        towers.parameter("embeddings.cls_token", 1, 1, hidden),
        *((towers.parameter("embeddings.mask_token", 1, 1, hidden),) if masked else ()),
        *((towers.parameter("embeddings.position_embeddings", 1, positions, hidden),) if learned else ()),
        *towers.conv("embeddings.patch_embeddings.projection", hidden, channels, patch, patch, bias=True),
    )
