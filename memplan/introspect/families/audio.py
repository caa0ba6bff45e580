"""Whisper's audio encoder, which several models read sound with.

Source: transformers 5.23, `models/{whisper,qwen2_audio,qwen2_5_omni}/modeling_*.py`.
"""

from __future__ import annotations

from memplan.domain.tensors import Tensor
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.towers import Shape


def encoder_shape(config: Config, *, hidden: int, intermediate: int, num_layers: int, num_heads: int) -> Shape:
    """The encoder's widths under Whisper's key names; the arguments are the class's defaults."""
    return Shape(
        hidden=config.int("d_model", default=hidden),
        intermediate=config.int("encoder_ffn_dim", default=intermediate),
        num_layers=config.num_layers("encoder_layers", default=num_layers),
        num_heads=config.int("encoder_attention_heads", default=num_heads),
    )


def whisper_encoder(
    shape: Shape, *, mel_bins: int, positions: int, last_norm: str = "layer_norm"
) -> tuple[Tensor, ...]:
    """Two convolutions over mel frames (the second halves their number), positions, layers, a norm.

    `positions` 0 when positions are computed, not stored.
    """
    return (
        *towers.conv("conv1", shape.hidden, mel_bins, 3, bias=True),
        *towers.conv("conv2", shape.hidden, shape.hidden, 3, bias=True),
        *((towers.table("embed_positions", positions, shape.hidden),) if positions else ()),
        *towers.stack("layers", towers.layer(towers.WHISPER, shape), shape.num_layers),
        *blocks.norm(last_norm, shape.hidden, bias=True),
    )
