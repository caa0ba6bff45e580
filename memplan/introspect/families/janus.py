"""Janus and Janus-Pro in deepseek-ai's own code (`multi_modality`): one tower to see with, one tokenizer to draw with.

Source: deepseek-ai's `modeling_vlm.py`, `siglip_vit.py`, `vq_model.py` and `projector.py`.
"""

from __future__ import annotations

from itertools import pairwise

from memplan.domain.model import ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import towers
from memplan.introspect.config import Config
from memplan.introspect.families import convolutional
from memplan.introspect.families.deepseek_media import timm_siglip
from memplan.introspect.families.nested import read_language, wrap
from memplan.introspect.towers import Shape
from memplan.records import replace

_VISION = Shape(hidden=1024, intermediate=4096, num_layers=24, num_heads=16)
_VISION_NAME, _PATCH = "siglip_large_patch16_384", 16
_BASE, _MULTIPLIERS, _BLOCKS, _LATENT = 128, (1, 1, 2, 2, 4), 2, 256
_USED = 65536  # a record of recently used codes, stored with the tokenizer


def multi_modality(config: Config, name: str) -> ModelSpec:
    """The parts are named by class, with their sizes under `params`."""
    text = read_language(config, name, keys=("language_config",), default_type="llama")
    vision = config.sub("vision_config").sub("params")
    if (kind := vision.str("model_name", default=_VISION_NAME)) != _VISION_NAME:
        raise UnsupportedModel(f"unknown vision tower: `{kind}`", hint="try --introspect torch")
    side = vision.int("image_size", default=384) // _PATCH
    if not side:
        raise UnsupportedModel("config key `vision_config.params.image_size` is smaller than a patch")
    media = (towers.image(_VISION, tokens=side**2, patches=side**2),)
    sight = timm_siglip(_VISION, patch=_PATCH, positions=side**2)
    return wrap(
        config,
        text,
        (
            towers.tower(Role.VISION, "vision_model.vision_tower.", sight, media=media),
            towers.projector(_aligner(config, "aligner")),
            _drawing(config),
        ),
        prefix="language_model.",
    )


def _aligner(config: Config, name: str) -> tuple[Tensor, ...]:
    """A map into the language model and further square ones, as deep as the config says."""
    params = config.sub(f"{name}_config").sub("params")
    width = params.int("n_embed")
    tensors = [*towers.dense(f"{name}.layers.0", width, params.int("input_dim"))]
    for index in range(1, params.num_layers("depth", default=1)):
        tensors += towers.dense(f"{name}.layers.{2 * index}", width, width)
    return tuple(tensors)


def _drawing(config: Config) -> Tower:
    """The image tokenizer with its codes, and the head that predicts codes."""
    codes = config.sub("gen_vision_config").sub("params")
    head = config.sub("gen_head_config").sub("params")
    entries, width = codes.int("image_token_size", default=16384), codes.int("n_embed", default=8)
    hidden = head.int("n_embed")
    joint = head.int("image_token_embed", default=hidden)
    tensors = (
        *_tokenizer(entries, width),
        *_aligner(config, "gen_aligner"),
        *towers.dense("gen_head.output_mlp_projector", joint, hidden),
        *towers.dense("gen_head.vision_head", head.int("image_token_size", default=entries), joint),
        towers.table("gen_embed", entries, width),
    )
    return towers.tower(Role.OTHER, "", tensors, optional=True)


def _tokenizer(entries: int, width: int) -> tuple[Tensor, ...]:
    """VQ-16: an encoder that halves the image four times, a codebook, and a decoder that doubles it again."""
    widths = [_BASE * multiplier for multiplier in _MULTIPLIERS]
    return towers.under(
        "gen_vision_model.",
        (
            *towers.conv("encoder.conv_in", _BASE, 3, 3, 3, bias=True),
            *_levels("encoder", [_BASE, *widths], blocks_per_level=_BLOCKS, resampler="downsample"),
            *_middle("encoder", widths[-1]),
            *convolutional.group_norm("encoder.norm_out", widths[-1]),
            *towers.conv("encoder.conv_out", _LATENT, widths[-1], 3, 3, bias=True),
            *towers.conv("quant_conv", width, _LATENT, 1, 1, bias=True),
            towers.table("quantize.embedding", entries, width),
            replace(towers.parameter("quantize.codebook_used", _USED), is_buffer=True),
            *towers.conv("post_quant_conv", _LATENT, width, 1, 1, bias=True),
            *towers.conv("decoder.conv_in", widths[-1], _LATENT, 3, 3, bias=True),
            *_middle("decoder", widths[-1]),
            *_levels("decoder", [widths[-1], *widths[::-1]], blocks_per_level=_BLOCKS + 1, resampler="upsample"),
            *convolutional.group_norm("decoder.norm_out", widths[0]),
            *towers.conv("decoder.conv_out", 3, widths[0], 3, 3, bias=True),
        ),
    )


def _levels(half: str, widths: list[int], *, blocks_per_level: int, resampler: str) -> tuple[Tensor, ...]:
    """Residual blocks at every resolution; the smallest has attention after each, all but the last a resampler."""
    last, smallest = len(widths) - 2, len(widths) - 2 if half == "encoder" else 0
    tensors: list[Tensor] = []
    for level, (source, target) in enumerate(pairwise(widths)):
        prefix = f"{half}.conv_blocks.{level}"
        for index in range(blocks_per_level):
            block = f"{prefix}.res.{index}"
            tensors += convolutional.resnet(block, target if index else source, target, shortcut="nin_shortcut")
            if level == smallest:
                tensors += convolutional.pixel_attention(f"{prefix}.attn.{index}", target)
        if level != last:
            tensors += convolutional.resample(f"{prefix}.{resampler}", target)
    return tuple(tensors)


def _middle(half: str, width: int) -> tuple[Tensor, ...]:
    return (
        *convolutional.resnet(f"{half}.mid.0", width, width),
        *convolutional.pixel_attention(f"{half}.mid.1", width),
        *convolutional.resnet(f"{half}.mid.2", width, width),
    )
