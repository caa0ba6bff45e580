"""Idefics 3 and SmolVLM: a SigLIP tower for every tile, patches merged by a shuffle and one linear map.

Source: transformers 5.23, `models/{idefics3,smolvlm}/modeling_*.py`; vLLM 0.33.0,
`model_executor/models/idefics3.py`. The releases' preprocessors scale an image to four tiles a side and add the whole
image.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role
from memplan.introspect import towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.families.vision import siglip

_TILES = 4 * 4 + 1
_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}


def idefics3(config: Config, name: str) -> ModelSpec:
    """Idefics 3 and SmolVLM differ in names of classes and in defaults alone."""
    text = read_language(config, name, default_type="llama")
    part = merged(config, "vision_config", _VISION)
    vision = siglip(Config({**part.raw(), "vision_use_head": False}, path=part.path))
    merge = config.int("scale_factor", default=2) ** 2
    tokens = _TILES * max(vision.patches // merge, 1)
    media = (towers.image(vision.shape, tokens=tokens, patches=_TILES * vision.patches),)
    connector = towers.dense(
        "model.connector.modality_projection.proj", text.hidden_size, vision.shape.hidden * merge, bias=False
    )
    return wrap(
        config,
        text,
        (towers.tower(Role.VISION, "model.vision_model.", vision.tensors, media=media), towers.projector(connector)),
        model="model.text_model",
    )
