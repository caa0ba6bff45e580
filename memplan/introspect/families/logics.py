"""Logics-Thinking: Qwen3 behind two vision towers, a ConvNeXt and a SigLIP, whose features are joined.

Source: the tensor names in alibaba's checkpoint index; timm's `convnext_xxlarge` for the sizes that the config does not
give. Layers of SigLIP behind the one that is read (`mm_vision_select_layer`) are not stored.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged, read_language, wrap
from memplan.introspect.families.vision import siglip

_DEPTHS, _WIDTHS, _CLASSES = (3, 4, 30, 3), (384, 768, 1536, 3072), 1024
_TOWERS = "convnext-1024,siglip2-384"
_SIGLIP = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
}


def logics(config: Config, name: str) -> ModelSpec:
    """The one pair of towers that the release has; others are refused."""
    if (named := config.str("mm_vision_tower")) != _TOWERS:
        raise UnsupportedModel(f"config key `mm_vision_tower` names towers that are not known: `{named}`")
    text = read_language(config, name, default_type="qwen3")
    part = merged(config, "siglip_config", _SIGLIP)
    layers = part.num_layers("num_hidden_layers", default=27)
    select = config.int("mm_vision_select_layer", default=-2, minimum=-layers)
    kept = layers + 1 + select if select < 0 else select
    sight = siglip(Config({**part.raw(), "num_hidden_layers": max(kept, 1), "vision_use_head": False}, path=part.path))
    joined = _WIDTHS[-1] + sight.shape.hidden
    hidden = text.hidden_size
    prefix = "model.vision_tower.vision_towers."
    projector = towers.bridge(("model.mm_projector.0", "model.mm_projector.2"), (joined, hidden, hidden))
    return wrap(
        config,
        text,
        (
            towers.tower(Role.VISION, f"{prefix}0.vision_tower.", _convnext()),
            towers.tower(Role.VISION, f"{prefix}1.vision_tower.vision_model.", sight.tensors),
            towers.projector(projector),
        ),
        extra=(towers.parameter("model.image_newline", hidden),),
    )


def _convnext() -> tuple[Tensor, ...]:
    tensors = [
        *towers.conv("stem.0", _WIDTHS[0], 3, 4, 4, bias=True),
        *blocks.norm("stem.1", _WIDTHS[0], bias=True),
    ]
    for stage, (depth, width) in enumerate(zip(_DEPTHS, _WIDTHS, strict=True)):
        if stage:
            before = _WIDTHS[stage - 1]
            tensors += blocks.norm(f"stages.{stage}.downsample.0", before, bias=True)
            tensors += towers.conv(f"stages.{stage}.downsample.1", width, before, 2, 2, bias=True)
        tensors += towers.stack(f"stages.{stage}.blocks", _convnext_block(width), depth)
    return (
        *tensors,
        *blocks.norm("head.norm", _WIDTHS[-1], bias=True),
        *towers.dense("head.fc", _CLASSES, _WIDTHS[-1]),
    )


def _convnext_block(width: int) -> tuple[Tensor, ...]:
    return (
        *towers.conv("conv_dw", width, 1, 7, 7, bias=True),
        *blocks.norm("norm", width, bias=True),
        *towers.feed_forward(("mlp.fc1", "mlp.fc2"), width, 4 * width, bias=True),
        towers.parameter("weight", width),
    )
