"""MiniCPM-V 2.5 to 4.6.

Source: openbmb's `modeling_minicpmv.py` and `resampler.py`, transformers 5.23
`models/minicpmv4_6/modeling_minicpmv4_6.py`; vLLM 0.33.0, `model_executor/models/{minicpmv,minicpmv4_6}.py`: an image
is cut into at most nine slices of 448 x 448 pixels beside the whole, a video has at most sixteen frames.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.domain.model import MediaInput, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.families.vision import Vision, siglip
from memplan.records import replace

_LANGUAGE_BY_VERSION: Mapping[str, str] = {"2.5": "llama", "2.6": "qwen2", "4.0": "llama", "4.5": "qwen3"}
_WITH_VIDEO = frozenset({"2.6", "4.0", "4.5"})
_FRAMES = 16
_SLICE_PIXELS = 448


def minicpmv(config: Config, name: str) -> ModelSpec:
    """MiniCPM-V in its own code: SigLIP, and a resampler whose queries attend to the patches once.

    The version decides the family of the language model, whose keys stand in the wrapper.
    """
    version = _version(config)
    text = read_language(config, name, default_type=_LANGUAGE_BY_VERSION[version])
    vision = _vision(config)
    queries = config.int("query_num", default=64)
    resampler = _resampler(text.hidden_size, vision.shape.hidden, queries)
    media = _media(config, vision, queries, moving=version in _WITH_VIDEO)
    return wrap(
        config,
        text,
        (
            towers.tower(Role.VISION, "vpm.", vision.tensors, media=media),
            towers.tower(Role.PROJECTOR, "resampler.", resampler),
        ),
        prefix="llm.",
    )


def minicpmv4_6(config: Config, name: str) -> ModelSpec:
    """MiniCPM-V 4.6: patches are merged two by two inside the tower, and again behind it."""
    text = read_language(config, name, default_type="qwen3_5_text")
    vision = _vision(config)
    hidden = vision.shape.hidden
    merger = _window_merger(vision)
    last = config.num_layers("merger_times", default=1) - 1
    wide = 4 * hidden
    maps = (
        *towers.stack("model.merger.mlp", _downsampling(wide, hidden), last),
        *towers.under(f"model.merger.mlp.{last}.", _downsampling(wide, text.hidden_size)),
    )
    media = _media(config, vision, (_SLICE_PIXELS // vision.patch_size) ** 2 // 16, moving=True)
    return wrap(
        config,
        text,
        (
            towers.tower(Role.VISION, "model.vision_tower.", (*vision.tensors, *merger), media=media),
            towers.projector(maps),
        ),
        model="model.language_model",
    )


def _version(config: Config) -> str:
    """The config's `version`; configs older than that key are 2.5, or 2.0 by their sizes, as vLLM tells them apart."""
    if not config.has("version"):
        old = config.int("hidden_size") == 2304 and config.int("query_num", default=64) == 64
        version = "2.0" if old else "2.5"
    else:
        value = config.get("version")
        version = value if isinstance(value, str) else str(config.float("version"))
    if version not in _LANGUAGE_BY_VERSION:
        raise UnsupportedModel(f"config key `version` is not one that is known: `{version:.20}`")
    return version


def _vision(config: Config) -> Vision:
    """SigLIP without its pooling head, and without its last layer where the config drops it."""
    part = merged(config, "vision_config", {})
    raw = {**part.raw(), "vision_use_head": False}
    if config.bool("drop_vision_last_layer", default=False):
        raw["num_hidden_layers"] = part.num_layers("num_hidden_layers", default=12) - 1
    return siglip(Config(raw, path=part.path))


def _resampler(width: int, source: int, queries: int) -> tuple[Tensor, ...]:
    return (
        towers.parameter("query", queries, width),
        *(towers.dense("kv_proj", width, source, bias=False) if source != width else ()),
        towers.parameter("attn.in_proj_weight", 3 * width, width),
        towers.parameter("attn.in_proj_bias", 3 * width),
        *towers.dense("attn.out_proj", width, width),
        *blocks.norms(("ln_q", "ln_kv", "ln_post"), width, bias=True),
        towers.parameter("proj", width, width),
    )


def _window_merger(vision: Vision) -> tuple[Tensor, ...]:
    """One attention and one MLP over windows of two by two patches, in the middle of the tower."""
    hidden, wide, inner = vision.shape.hidden, 4 * vision.shape.hidden, 4 * vision.shape.intermediate
    style = replace(towers.CLIP, norms=())
    return towers.under(
        "vit_merger.",
        (
            *towers.attention(style.attention, vision.shape, style),
            *blocks.norm("layer_norm1", hidden, bias=True),
            *blocks.norm("pre_norm", wide, bias=True),
            *towers.bridge(("linear_1", "linear_2"), (wide, inner, hidden)),
        ),
    )


def _downsampling(source: int, target: int) -> tuple[Tensor, ...]:
    return (
        *blocks.norm("pre_norm", source, bias=True),
        *towers.bridge(("linear_1", "linear_2"), (source, source, target)),
    )


def _media(config: Config, vision: Vision, per_slice: int, *, moving: bool) -> tuple[MediaInput, ...]:
    patches = (_SLICE_PIXELS // vision.patch_size) ** 2
    slices = config.sub("slice_config").int("max_slice_nums", default=9) if config.has("slice_config") else 9
    tokens = (slices + 1) * per_slice
    picture = towers.image(vision.shape, tokens=tokens, patches=(slices + 1) * patches)
    if not moving:
        return (picture,)
    film = towers.video(
        vision.shape,
        step_tokens=per_slice,
        step_patches=patches,
        max_steps=_FRAMES,
        reserved_tokens=tokens,
    )
    return (picture, film)
