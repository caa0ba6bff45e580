"""Vision towers joined to a language model by a small projector: LLaVA and the wrappers that are built like it.

Source: transformers 5.23, `models/{llava,llava_next,llava_onevision,aya_vision,paligemma,mistral3}/modeling_*.py` for
the tensors; vLLM 0.33.0, `model_executor/models/{llava,llava_next,llava_onevision,paligemma,mistral3}.py` for what
the largest image becomes (Aya Vision: 0.24.0, the last release that had it).
"""

from __future__ import annotations

from math import sqrt

from memplan.domain.model import ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families import load_family
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.families.vision import Vision, read_vision

_CLIP_L_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
_SIGLIP_SO400M_384 = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_PIXTRAL_1540 = {
    "model_type": "pixtral",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "head_dim": 64,
    "image_size": 1540,
    "patch_size": 14,
}
_LLAVA_NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_ONEVISION_PINPOINTS = tuple((384 * high, 384 * wide) for high in range(1, 7) for wide in range(1, 7))


def llava(config: Config, name: str) -> ModelSpec:
    """LLaVA 1.5 and Pixtral 12B: one image, one grid of patches, each one token of the language model.

    LLaVA's own code has the same `model_type`, and names its tower where transformers describes it.
    """
    if config.has("mm_vision_tower"):
        return load_family("llava_llama")(config, name)
    vision, text = _vision(config, _CLIP_L_336), _language(config, name)
    return wrap(
        config,
        text,
        (
            _tower(config, vision, tokens=selected(config, vision), patches=vision.patches),
            _projector(config, vision, text.hidden_size),
        ),
        prefix="language_model.",
    )


def llava_next(config: Config, name: str) -> ModelSpec:
    """LLaVA-NeXT: the whole image and its tiles, every row of patches ended by a learned newline."""
    vision, text = _vision(config, _CLIP_L_336), _language(config, name)
    base, tokens, tiles = selected(config, vision), 0, 0
    for high, wide in pinpoints(config, _LLAVA_NEXT_PINPOINTS):
        rows, columns = high // vision.image_size * vision.side, wide // vision.image_size * vision.side
        if base + rows * columns + rows > tokens:
            tokens = base + rows * columns + rows
            tiles = rows * columns // vision.side**2
    return wrap(
        config,
        text,
        (
            _tower(config, vision, tokens=tokens, patches=(tiles + 1) * vision.patches),
            _projector(config, vision, text.hidden_size),
        ),
        prefix="language_model.",
        extra=(_newline(text.hidden_size),),
    )


def llava_onevision(config: Config, name: str) -> ModelSpec:
    """LLaVA-OneVision: tiles as in LLaVA-NeXT, shrunk to nine tiles' worth of tokens; a video's frames are pooled."""
    vision, text = _vision(config, _SIGLIP_SO400M_384), _language(config, name, default_type="qwen2")
    tokens, tiles = _onevision_image(config, vision)
    frame_tokens = ((vision.side + 1) // 2) ** 2
    media = (
        towers.image(vision.shape, tokens=tokens, patches=(tiles + 1) * vision.patches),
        towers.video(vision.shape, step_tokens=frame_tokens, step_patches=vision.patches, max_steps=16),
    )
    return wrap(
        config,
        text,
        (
            towers.tower(Role.VISION, _vision_prefix(config), vision.tensors, media=media),
            _projector(config, vision, text.hidden_size),
        ),
        prefix="language_model.",
        extra=(_newline(text.hidden_size),),
    )


def aya_vision(config: Config, name: str) -> ModelSpec:
    """Aya Vision: up to twelve tiles and the whole image, patches merged by `downsample_factor` squared."""
    vision, text = _vision(config, _SIGLIP_SO400M_384), _language(config, name, default_type="cohere2")
    factor = config.int("downsample_factor", default=2)
    width = vision.shape.hidden * factor**2
    inner = config.int("alignment_intermediate_size", default=text.hidden_size)
    tiles = 13
    projector = (
        *blocks.norm("multi_modal_projector.layernorm", width, bias=True),
        *towers.dense("multi_modal_projector.linear_1", inner, width),
        *towers.dense("multi_modal_projector.linear_2", text.hidden_size, inner // 2),
    )
    tokens = tiles * (vision.side // factor) ** 2
    return wrap(
        config,
        text,
        (_tower(config, vision, tokens=tokens, patches=tiles * vision.patches), towers.projector(projector)),
        prefix="language_model.",
    )


def paligemma(config: Config, name: str) -> ModelSpec:
    """PaliGemma: a SigLIP tower of one size and a single linear map into Gemma."""
    vision, text = _vision(config, _SIGLIP_SO400M_384), _language(config, name, default_type="gemma")
    width = config.optional_int("projection_dim", minimum=1)
    if config.has("vision_config"):
        width = config.sub("vision_config").optional_int("projection_dim", minimum=1) or width
    projector = towers.dense("multi_modal_projector.linear", width or text.hidden_size, vision.shape.hidden)
    return wrap(
        config,
        text,
        (_tower(config, vision, tokens=vision.patches, patches=vision.patches), towers.projector(projector)),
        prefix="language_model.",
    )


def mistral3(config: Config, name: str) -> ModelSpec:
    """Mistral Small 3.1 and later: a Pixtral tower whose patches are merged two by two before the projector."""
    vision, text = _vision(config, _PIXTRAL_1540), _language(config, name, default_type="mistral")
    merge = config.int("spatial_merge_size", default=2)
    hidden, bias = vision.shape.hidden, config.bool("multimodal_projector_bias", default=False)
    side = -(-vision.image_size // (vision.patch_size * merge))
    projector = (
        *blocks.norm("multi_modal_projector.norm", hidden),
        *towers.dense("multi_modal_projector.patch_merger.merging_layer", hidden, hidden * merge**2, bias=False),
        *towers.dense("multi_modal_projector.linear_1", text.hidden_size, hidden * _feature_layers(config), bias=bias),
        *towers.dense("multi_modal_projector.linear_2", text.hidden_size, text.hidden_size, bias=bias),
    )
    return wrap(
        config,
        text,
        (_tower(config, vision, tokens=side**2, patches=(side * merge) ** 2), towers.projector(projector)),
        prefix="language_model.",
    )


def selected(config: Config, vision: Vision) -> int:
    """Tokens that the feature selection keeps of one image: `default` drops the first, which is the class token."""
    strategy = config.str("vision_feature_select_strategy", default="default")
    return vision.patches - 1 if strategy == "default" and vision.class_token else vision.patches


def pinpoints(config: Config, default: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """The (height, width) pairs of `image_grid_pinpoints`. Raises: UnsupportedModel when they are something else."""
    pairs = config.list("image_grid_pinpoints", default=default)
    for pair in pairs:
        good = (
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(side) is int and side > 0 for side in pair)
        )
        if not good:
            raise UnsupportedModel(
                "config key `image_grid_pinpoints` must be a list of pairs of positive whole numbers"
            )
    return tuple((pair[0], pair[1]) for pair in pairs if isinstance(pair, (list, tuple))) or default


def _onevision_image(config: Config, vision: Vision) -> tuple[int, int]:
    """Tokens and tiles of the 1153 x 944 image that vLLM profiles LLaVA-OneVision with."""
    wide, high = 1153, 944

    def fit(pair: tuple[int, int]) -> tuple[int, int]:
        scale = min(pair[1] / wide, pair[0] / high)
        used = min(int(wide * scale) * int(high * scale), wide * high)
        return used, used - pair[0] * pair[1]

    best = max(pinpoints(config, _ONEVISION_PINPOINTS), key=fit)
    tiles_high, tiles_wide = max(best[0] // vision.image_size, 1), max(best[1] // vision.image_size, 1)
    rows, columns = tiles_high * vision.side, tiles_wide * vision.side
    if wide / high > columns / rows:
        rows -= (rows - int(round(high * (columns / wide), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(wide * (rows / high), 7))) // 2 * 2
    ratio = sqrt(rows * columns / (9 * vision.side**2))
    if ratio > 1.1:
        rows, columns = int(rows // ratio), int(columns // ratio)
    return vision.patches + rows * columns + rows, tiles_high * tiles_wide


def _vision(config: Config, default: dict[str, object]) -> Vision:
    """The tower of `vision_config`; the wrapper's default tower when there is none."""
    if not config.has("vision_config"):
        return read_vision(merged(config, "vision_config", default))
    return read_vision(config.sub("vision_config"), default_type=str(default["model_type"]))


def _language(config: Config, name: str, *, default_type: str = "llama") -> ModelSpec:
    """The language model. A wrapper that says "not tied" is overruled by a language model that says "tied"."""
    text = config.sub("text_config") if config.has("text_config") else None
    tied = True if text and text.has("tie_word_embeddings") and text.bool("tie_word_embeddings") else None
    if text is None:
        return read_language(Config({**config.raw(), "text_config": {}}), name, default_type=default_type)
    return read_language(config, name, default_type=default_type, tied=tied)


def _vision_prefix(config: Config) -> str:
    """SigLIP and CLIP towers stand one module deeper in published checkpoints than Pixtral's."""
    pixtral = config.has("vision_config") and config.sub("vision_config").get("model_type") == "pixtral"
    return "vision_tower." if pixtral or config.get("model_type") == "mistral3" else "vision_tower.vision_model."


def _tower(config: Config, vision: Vision, *, tokens: int, patches: int) -> Tower:
    media = (towers.image(vision.shape, tokens=tokens, patches=patches),)
    return towers.tower(Role.VISION, _vision_prefix(config), vision.tensors, media=media)


def _feature_layers(config: Config) -> int:
    """How many layers' features are joined before the projector."""
    layers = config.get("vision_feature_layer")
    return len(layers) if isinstance(layers, (list, tuple)) and layers else 1


def _projector(config: Config, vision: Vision, hidden: int) -> Tower:
    bias = config.bool("multimodal_projector_bias", default=True)
    width = vision.shape.hidden * _feature_layers(config)
    names = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")
    return towers.projector(towers.bridge(names, (width, hidden, hidden), bias=bias))


def _newline(hidden: int) -> Tensor:
    return towers.parameter("image_newline", hidden)
