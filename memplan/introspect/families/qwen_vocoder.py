"""Qwen2.5-Omni's vocoder: a diffusion transformer from speech codes to a mel spectrogram, and BigVGAN from that to
sound.

Source: transformers 5.23, `models/qwen2_5_omni/modeling_qwen2_5_omni.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.tensors import Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.nested import merged

_TIME_WIDTH = 256


def token2wav(config: Config) -> tuple[Tensor, ...]:
    """All of the vocoder."""
    return (
        *towers.under("code2wav_dit_model.", _dit(merged(config, "dit_config", {}))),
        *towers.under("code2wav_bigvgan_model.", _bigvgan(merged(config, "bigvgan_config", {}))),
    )


def _dit(config: Config) -> tuple[Tensor, ...]:
    width = config.int("hidden_size", default=1024)
    inner = config.int("num_attention_heads", default=16) * config.int("head_dim", default=64)
    wide = width * config.int("ff_mult", default=2)
    mel, codes = config.int("mel_dim", default=80), config.int("emb_dim", default=512)
    speaker, given = config.int("enc_dim", default=128), config.int("enc_emb_dim", default=192)
    one = (
        *towers.dense("attn_norm.linear", 6 * width, width),
        *(t for part in ("to_q", "to_k", "to_v") for t in towers.dense(f"attn.{part}", inner, width)),
        *towers.dense("attn.to_out.0", width, inner),
        *towers.dense("ff.ff.0", wide, width),
        *towers.dense("ff.ff.3", width, wide),
    )
    return (
        *towers.dense("time_embed.time_mlp.0", width, _TIME_WIDTH),
        *towers.dense("time_embed.time_mlp.2", width, width),
        towers.table("text_embed.codec_embed", config.int("num_embeds", default=8193) + 1, codes),
        *towers.dense("input_embed.proj", width, mel + speaker + given + codes),
        *towers.under("input_embed.spk_encoder.", _speaker(config, mel, speaker)),
        *towers.stack("transformer_blocks", one, config.num_layers("num_hidden_layers", default=22)),
        *towers.dense("norm_out.linear", 2 * width, width),
        *towers.dense("proj_out", mel, width),
    )


def _speaker(config: Config, mel: int, out_width: int) -> tuple[Tensor, ...]:
    """ECAPA-TDNN: convolutions in time, three of them squeezed and excited, pooled with attention."""
    widths = _positive(config, "enc_channels", (256, 256, 256, 256, 768))
    kernels = _positive(config, "enc_kernel_sizes", (5, 3, 3, 3, 1))
    if len(widths) != len(kernels):
        raise UnsupportedModel("config keys `enc_channels` and `enc_kernel_sizes` must be equally long")
    scale, squeeze = config.int("enc_res2net_scale", default=2), config.int("enc_se_channels", default=64)
    attention, last = config.int("enc_attention_channels", default=64), widths[-1]
    tensors = [*towers.conv("blocks.0.conv", widths[0], mel, kernels[0], bias=True)]
    for index in range(1, len(widths) - 1):
        prefix, source, width = f"blocks.{index}", widths[index - 1], widths[index]
        tensors += towers.conv(f"{prefix}.tdnn1.conv", width, source, 1, bias=True)
        part = blocks.exact_div(width, scale, "encoder channels", "parts")
        one = towers.conv("conv", part, part, kernels[index], bias=True)
        tensors += towers.stack(f"{prefix}.res2net_block.blocks", one, scale - 1)
        tensors += towers.conv(f"{prefix}.tdnn2.conv", width, width, 1, bias=True)
        tensors += towers.conv(f"{prefix}.se_block.conv1", squeeze, width, 1, bias=True)
        tensors += towers.conv(f"{prefix}.se_block.conv2", width, squeeze, 1, bias=True)
        if source != width:
            tensors += towers.conv(f"{prefix}.shortcut", width, source, 1, bias=True)
    return (
        *tensors,
        *towers.conv("mfa.conv", last, last, kernels[-1], bias=True),
        *towers.conv("asp.tdnn.conv", attention, 3 * last, 1, bias=True),
        *towers.conv("asp.conv", last, attention, 1, bias=True),
        *towers.conv("fc", out_width, 2 * last, 1, bias=True),
    )


def _bigvgan(config: Config) -> tuple[Tensor, ...]:
    """Transposed convolutions that halve the width each, behind each of them residual blocks of several kernels."""
    width = config.int("upsample_initial_channel", default=1536)
    kernels = _positive(config, "upsample_kernel_sizes", (11, 7, 4, 4, 4, 4))
    tensors = [*towers.conv("conv_pre", width, config.int("mel_dim", default=80), 7, bias=True)]
    residual = _positive(config, "resblock_kernel_sizes", (3, 7, 11))
    for index, kernel in enumerate(kernels):
        half = blocks.exact_div(width, 2, "upsampler channels", "halves")
        tensors.append(towers.parameter(f"ups.{index}.0.weight", width, half, kernel))
        tensors.append(towers.parameter(f"ups.{index}.0.bias", half))
        for step, size in enumerate(residual):
            prefix = f"resblocks.{index * len(residual) + step}"
            tensors += towers.stack(f"{prefix}.convs1", _conv(half, size), 3)
            tensors += towers.stack(f"{prefix}.convs2", _conv(half, size), 3)
            tensors += towers.stack(f"{prefix}.activations", _snake(half), 6)
        width = half
    return (
        *tensors,
        *towers.under("activation_post.", _snake(width)),
        *towers.conv("conv_post", 1, width, 7),
    )


def _conv(width: int, kernel: int) -> tuple[Tensor, ...]:
    return (towers.parameter("weight", width, width, kernel), towers.parameter("bias", width))


def _snake(width: int) -> tuple[Tensor, ...]:
    """A periodic activation with two weights for every channel."""
    return (towers.parameter("act.alpha", width), towers.parameter("act.beta", width))


def _positive(config: Config, key: str, default: Sequence[int]) -> tuple[int, ...]:
    values = config.ints(key, default=default)
    if not values or min(values) < 1 or len(values) > 64:
        raise UnsupportedModel(f"config key `{key}` must be a short list of positive whole numbers")
    return values
