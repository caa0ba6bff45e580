"""AutoencoderKL, which turns images into latents and back.

Source: diffusers 0.42, `models/autoencoders/{autoencoder_kl,vae}.py` and `models/unets/unet_2d_blocks.py`.
"""

from __future__ import annotations

from itertools import pairwise

from memplan.domain.tensors import Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import towers
from memplan.introspect.config import Config
from memplan.introspect.families import convolutional


def autoencoder_kl(config: Config) -> tuple[Tensor, ...]:
    """Encoder, decoder, and the 1 x 1 convolutions around the latent unless the config leaves them out."""
    widths = list(read_widths(config, (64,)))
    blocks_per_level = config.num_layers("layers_per_block", default=1)
    latent = config.int("latent_channels", default=4)
    attends = config.bool("mid_block_add_attention", default=True)
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if any(name != kind for name in config.strs(key, default=(kind,))):
            raise UnsupportedModel(f"config key `{config.path}.{key}` has blocks other than `{kind}`")
    channels, out_channels = config.int("in_channels", default=3), config.int("out_channels", default=3)
    before = config.bool("use_quant_conv", default=True)
    after = config.bool("use_post_quant_conv", default=True)
    return (
        *towers.conv("encoder.conv_in", widths[0], channels, 3, 3, bias=True),
        *_levels("encoder.down_blocks", [widths[0], *widths], blocks_per_level, "downsamplers"),
        *_middle("encoder", widths[-1], attends=attends),
        *convolutional.group_norm("encoder.conv_norm_out", widths[-1]),
        *towers.conv("encoder.conv_out", 2 * latent, widths[-1], 3, 3, bias=True),
        *(towers.conv("quant_conv", 2 * latent, 2 * latent, 1, 1, bias=True) if before else ()),
        *(towers.conv("post_quant_conv", latent, latent, 1, 1, bias=True) if after else ()),
        *towers.conv("decoder.conv_in", widths[-1], latent, 3, 3, bias=True),
        *_middle("decoder", widths[-1], attends=attends),
        *_levels("decoder.up_blocks", [widths[-1], *widths[::-1]], blocks_per_level + 1, "upsamplers"),
        *convolutional.group_norm("decoder.conv_norm_out", widths[0]),
        *towers.conv("decoder.conv_out", out_channels, widths[0], 3, 3, bias=True),
    )


def read_widths(config: Config, default: tuple[int, ...]) -> tuple[int, ...]:
    """The channels of every resolution. Raises: UnsupportedModel when they are none, too many or not positive."""
    widths = config.ints("block_out_channels", default=default)
    if not widths or len(widths) > 16 or min(widths) < 1:
        raise UnsupportedModel(
            f"config key `{config.path}.block_out_channels` must be a short list of positive numbers"
        )
    return widths


def _levels(prefix: str, widths: list[int], blocks_per_level: int, resampler: str) -> tuple[Tensor, ...]:
    tensors: list[Tensor] = []
    last = len(widths) - 2
    for level, (source, target) in enumerate(pairwise(widths)):
        for index in range(blocks_per_level):
            tensors += convolutional.resnet(f"{prefix}.{level}.resnets.{index}", target if index else source, target)
        if level != last:
            tensors += convolutional.resample(f"{prefix}.{level}.{resampler}.0", target)
    return tuple(tensors)


def _middle(half: str, width: int, *, attends: bool) -> tuple[Tensor, ...]:
    prefix = f"{half}.mid_block"
    attention = (
        *convolutional.group_norm(f"{prefix}.attentions.0.group_norm", width),
        *(
            tensor
            for part in ("to_q", "to_k", "to_v", "to_out.0")
            for tensor in towers.dense(f"{prefix}.attentions.0.{part}", width, width)
        ),
    )
    return (
        *convolutional.resnet(f"{prefix}.resnets.0", width, width),
        *(attention if attends else ()),
        *convolutional.resnet(f"{prefix}.resnets.1", width, width),
    )
