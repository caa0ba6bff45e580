"""The parts of convolutional image coders: residual blocks, attention over pixels, group norms.

Used by image tokenizers and by diffusion pipelines. Engines hold all of it on every rank.
"""

from __future__ import annotations

from memplan.domain.tensors import Tensor
from memplan.introspect import blocks, towers


def group_norm(name: str, channels: int) -> tuple[Tensor, ...]:
    """A group norm's scale and shift: one of each for every channel, however many groups there are."""
    return blocks.norm(name, channels, bias=True)


def resnet(
    name: str, source: int, target: int, *, time_width: int = 0, shortcut: str = "conv_shortcut"
) -> tuple[Tensor, ...]:
    """A residual block: two 3 x 3 convolutions behind norms, a map from the time embedding where `time_width` is given,
    a 1 x 1 shortcut where the width changes.
    """
    return (
        *group_norm(f"{name}.norm1", source),
        *towers.conv(f"{name}.conv1", target, source, 3, 3, bias=True),
        *(towers.dense(f"{name}.time_emb_proj", target, time_width) if time_width else ()),
        *group_norm(f"{name}.norm2", target),
        *towers.conv(f"{name}.conv2", target, target, 3, 3, bias=True),
        *(towers.conv(f"{name}.{shortcut}", target, source, 1, 1, bias=True) if source != target else ()),
    )


def pixel_attention(name: str, channels: int) -> tuple[Tensor, ...]:
    """Attention over the pixels of a small map, with 1 x 1 convolutions as projections."""
    parts = ("q", "k", "v", "proj_out")
    return (
        *group_norm(f"{name}.norm", channels),
        *(t for part in parts for t in towers.conv(f"{name}.{part}", channels, channels, 1, 1, bias=True)),
    )


def resample(name: str, channels: int) -> tuple[Tensor, ...]:
    """The convolution of a downsampler or upsampler."""
    return towers.conv(f"{name}.conv", channels, channels, 3, 3, bias=True)
