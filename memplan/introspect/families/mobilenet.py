"""MobileNetV5 300M, the vision encoder of Gemma 3n. The config names it; its sizes are timm's.

Source: timm 1.0.31, `models/mobilenetv5.py`, architecture `mobilenetv5_300m_enc`.
"""

from __future__ import annotations

from memplan.domain.tensors import Tensor
from memplan.introspect import blocks, towers

WIDTH = 2048


def mobilenet_v5() -> tuple[Tensor, ...]:
    """A stem, four stages, and a fusion of the last two."""
    return (
        *towers.conv("conv_stem.conv", 64, 3, 3, 3, bias=True),
        *blocks.norm("conv_stem.bn", 64),
        *_edge("blocks.0.0", 64, 256, 128),
        *towers.stack("blocks.0", _edge("", 128, 512, 128), 2),
        *towers.under("blocks.1.0.", _inverted(128, 768, 256, start=3, middle_kernel=5)),
        *towers.stack("blocks.1", _inverted(256, 1024, 256, start=5), 2),
        *towers.stack("blocks.1", _inverted(256, 1024, 256, start=3), 2),
        *towers.under("blocks.2.0.", _inverted(256, 1536, 640, start=5, middle_kernel=5)),
        *towers.stack("blocks.2", _inverted(640, 2560, 640, start=5), 7),
        *towers.under("blocks.2.8.", _inverted(640, 640, 640)),
        *towers.stack("blocks.2", (*_attention(640, 768, 64, shrinks=True), *_inverted(640, 1280, 640)), 14),
        *towers.under("blocks.3.0.", _inverted(640, 3840, 1280, start=5, middle_kernel=5)),
        *towers.stack("blocks.3", (*_attention(1280, 1536, 96, shrinks=False), *_inverted(1280, 2560, 1280)), 19),
        *_pointwise("msfa.ffn.pw_exp", 3840, 640 + 1280),
        *_pointwise("msfa.ffn.pw_proj", WIDTH, 3840),
        *blocks.norm("msfa.norm", WIDTH),
    )


def _edge(prefix: str, source: int, middle: int, target: int) -> tuple[Tensor, ...]:
    """A residual block with one 3 x 3 convolution."""
    tensors = (
        *towers.conv("conv_exp", middle, source, 3, 3),
        *blocks.norm("bn1", middle),
        *towers.conv("conv_pwl", target, middle, 1, 1),
        *blocks.norm("bn2", target),
    )
    return towers.under(f"{prefix}.", tensors) if prefix else tensors


def _inverted(source: int, middle: int, target: int, *, start: int = 0, middle_kernel: int = 0) -> tuple[Tensor, ...]:
    """A block that widens and narrows again, with depthwise convolutions where a kernel size is given."""
    return (
        *(_depthwise("dw_start", source, start) if start else ()),
        *_pointwise("pw_exp", middle, source),
        *(_depthwise("dw_mid", middle, middle_kernel) if middle_kernel else ()),
        *_pointwise("pw_proj", target, middle),
        towers.parameter("layer_scale.gamma", target),
    )


def _attention(width: int, query_width: int, head_width: int, *, shrinks: bool) -> tuple[Tensor, ...]:
    """Attention with one key-value head; `shrinks` where keys and values come from a smaller map."""
    tensors: list[Tensor] = [*towers.conv("attn.query.proj", query_width, width, 1, 1)]
    for part in ("key", "value"):
        if shrinks:
            tensors += towers.conv(f"attn.{part}.down_conv", width, 1, 3, 3)
            tensors += blocks.norm(f"attn.{part}.norm", width)
        tensors += towers.conv(f"attn.{part}.proj", head_width, width, 1, 1)
    return (
        *blocks.norm("norm", width),
        *tensors,
        *towers.conv("attn.output.proj", width, query_width, 1, 1),
        towers.parameter("layer_scale.gamma", width),
    )


def _depthwise(name: str, width: int, kernel: int) -> tuple[Tensor, ...]:
    return (*towers.conv(f"{name}.conv", width, 1, kernel, kernel), *blocks.norm(f"{name}.bn", width))


def _pointwise(name: str, target: int, source: int) -> tuple[Tensor, ...]:
    return (*towers.conv(f"{name}.conv", target, source, 1, 1), *blocks.norm(f"{name}.bn", target))
