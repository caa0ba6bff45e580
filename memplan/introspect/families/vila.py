"""LLaVA in its authors' own code, and VILA, which keeps every part's config apart (`llava_llama`).

Source: haotian-liu's `llava_arch.py` and `multimodal_projector/builder.py`, NVlabs' `base_projector.py`. VILA's
SigLIP is stored with its pooling head. vLLM serves neither layout.
"""

from __future__ import annotations

import re

from memplan.domain.model import ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import read_language, wrap
from memplan.introspect.families.vision import Vision, clip, read_vision

_CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
_NAMED_TOWERS = {
    "openai/clip-vit-large-patch14": {**_CLIP_L, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**_CLIP_L, "image_size": 336},
}


def llava_llama(config: Config, name: str) -> ModelSpec:
    """VILA when the parts have configs, else LLaVA 1 to 1.6 with its tower named."""
    if config.has("llm_cfg"):
        return _vila(config, name)
    tower = config.str("mm_vision_tower")
    if tower not in _NAMED_TOWERS:
        raise UnsupportedModel(f"unknown vision tower: `{tower}`", hint="try --introspect torch")
    vision = clip(Config(_NAMED_TOWERS[tower], path="mm_vision_tower"))
    text = read_language(config, name, default_type="llama")
    kind = config.str("mm_projector_type", default="linear")
    newline = "unpad" in config.str("mm_patch_merge_type", default="flat")
    return wrap(
        config,
        text,
        (
            _tower("model.vision_tower.vision_tower.vision_model.", vision),
            towers.tower(Role.PROJECTOR, "model.mm_projector", _mlp(kind, ".", vision.shape.hidden, text.hidden_size)),
        ),
        extra=(towers.parameter("model.image_newline", text.hidden_size),) if newline else (),
    )


def _vila(config: Config, name: str) -> ModelSpec:
    text = read_language(config, name, keys=("llm_cfg",), default_type="llama", tied=_tied(config))
    vision = read_vision(config.sub("vision_tower_cfg"), default_type="siglip_vision_model")
    kind = config.sub("mm_projector_cfg").str("mm_projector_type")
    source = config.int("mm_hidden_size", default=vision.shape.hidden)
    return wrap(
        config,
        text,
        (
            _tower("vision_tower.vision_tower.vision_model.", vision),
            towers.tower(Role.PROJECTOR, "mm_projector.", _vila_projector(kind, source, text.hidden_size)),
        ),
        prefix="llm.",
    )


def _tied(config: Config) -> bool | None:
    """The language model's own word: the wrapper's key is a default that nothing reads."""
    part = config.sub("llm_cfg")
    return part.bool("tie_word_embeddings") if part.has("tie_word_embeddings") else None


def _tower(prefix: str, vision: Vision) -> Tower:
    media = (towers.image(vision.shape, tokens=vision.side**2, patches=vision.patches),)
    return towers.tower(Role.VISION, prefix, vision.tensors, media=media)


def _vila_projector(kind: str, source: int, hidden: int) -> tuple[Tensor, ...]:
    """2 x 2 patches joined behind a norm, or LLaVA's projectors."""
    if not kind.startswith("mlp_downsample"):
        return _mlp(kind, "layers.", source, hidden)
    if kind not in ("mlp_downsample", "mlp_downsample_2x2_fix"):
        raise UnsupportedModel(f"unknown projector: `{kind}`", hint="try --introspect torch")
    return (
        *blocks.norm("layers.1", 4 * source, bias=True),
        *towers.dense("layers.2", hidden, 4 * source),
        *towers.dense("layers.4", hidden, hidden),
    )


def _mlp(kind: str, prefix: str, source: int, hidden: int) -> tuple[Tensor, ...]:
    """`linear`, or `mlpNx_gelu`: N linear maps with a GELU between them."""
    match = re.fullmatch(r"mlp([1-9])x_gelu", kind)
    if kind not in ("linear", "identity") and not match:
        raise UnsupportedModel(f"unknown projector: `{kind}`", hint="try --introspect torch")
    if kind == "identity":
        return ()
    if not match:
        return towers.dense(prefix.rstrip("."), hidden, source)
    tensors = [*towers.dense(f"{prefix}0", hidden, source)]
    for index in range(1, int(match[1])):
        tensors += towers.dense(f"{prefix}{2 * index}", hidden, hidden)
    return tuple(tensors)
