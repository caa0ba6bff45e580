"""UNet2DConditionModel: the denoiser of Stable Diffusion 1, 2 and XL.

Source: diffusers 0.42, `models/unets/{unet_2d_condition,unet_2d_blocks}.py`, `models/transformers/transformer_2d.py`.
Options that no Stable Diffusion release uses are refused by name.
"""

from __future__ import annotations

from memplan.domain.tensors import Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families import convolutional
from memplan.introspect.families.diffusion_vae import read_widths
from memplan.records import dataclass

_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_OFF = ("only_cross_attention", "dual_cross_attention", "mid_block_only_cross_attention", "class_embeddings_concat")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unet:
    """What every block needs: the channels of each resolution, and for each its layers and its transformers' depth."""

    widths: tuple[int, ...]
    resnets: tuple[int, ...]
    depths: tuple[int, ...]
    source_widths: tuple[int, ...]
    time_width: int
    linear: bool


def unet_2d_condition(config: Config) -> tuple[Tensor, ...]:
    """All tensors of the UNet."""
    unet = _read(config)
    down = _kinds(config, "down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), _DOWN, unet)
    up = _kinds(config, "up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, _UP, unet)
    first, kernel_in, kernel_out = (
        unet.widths[0],
        config.int("conv_in_kernel", default=3),
        config.int("conv_out_kernel", default=3),
    )
    return (
        *towers.conv("conv_in", first, config.int("in_channels", default=4), kernel_in, kernel_in, bias=True),
        *_embeddings(config, unet),
        *(tensor for level, attends in enumerate(down) for tensor in _down_block(unet, level, attends=attends)),
        *_middle(config, unet),
        *(tensor for step, attends in enumerate(up) for tensor in _up_block(unet, step, attends=attends)),
        *convolutional.group_norm("conv_norm_out", first),
        *towers.conv("conv_out", config.int("out_channels", default=4), first, kernel_out, kernel_out, bias=True),
    )


def _read(config: Config) -> _Unet:
    for key in _OFF:
        if config.get(key) not in (None, False):
            raise UnsupportedModel(
                f"config key `{config.path}.{key}` is not supported when set", hint="try --introspect torch"
            )
    if config.str("resnet_time_scale_shift", default="default") != "default":
        raise UnsupportedModel(f"config key `{config.path}.resnet_time_scale_shift` must be `default`")
    widths = read_widths(config, (320, 640, 1280, 1280))
    return _Unet(
        widths=widths,
        resnets=_per_level(config, "layers_per_block", 2, len(widths)),
        depths=_per_level(config, "transformer_layers_per_block", 1, len(widths)),
        source_widths=_per_level(config, "cross_attention_dim", 1280, len(widths)),
        time_width=config.int("time_embedding_dim", default=4 * widths[0]),
        linear=config.bool("use_linear_projection", default=False),
    )


def _per_level(config: Config, key: str, default: int, levels: int) -> tuple[int, ...]:
    """One number for every resolution, which a config may give once for all."""
    if isinstance(config.get(key), (list, tuple)):
        numbers = config.ints(key)
    else:
        numbers = (config.int(key, default=default),) * levels
    if len(numbers) != levels or not all(0 < number <= 1 << 16 for number in numbers):
        raise UnsupportedModel(f"config key `{config.path}.{key}` must have {levels} positive whole numbers")
    return numbers


def _kinds(config: Config, key: str, default: tuple[str, ...], known: dict[str, bool], unet: _Unet) -> tuple[bool, ...]:
    """For every block whether it attends to the prompt."""
    names = config.strs(key, default=default)
    if len(names) != len(unet.widths):
        raise UnsupportedModel(
            f"config key `{config.path}.{key}` must name {len(unet.widths)} blocks, not {len(names)}"
        )
    for name in names:
        if name not in known:
            raise UnsupportedModel(f"config key `{config.path}.{key}` names a block that is not known: `{name}`")
    return tuple(known[name] for name in names)


def _embeddings(config: Config, unet: _Unet) -> tuple[Tensor, ...]:
    """The time embedding, and what is added to it: classes, sizes, a guidance scale."""
    tensors = [*_two_maps("time_embedding", unet.widths[0], unet.time_width)]
    if (width := config.optional_int("time_cond_proj_dim", minimum=1)) is not None:
        tensors += towers.dense("time_embedding.cond_proj", unet.widths[0], width, bias=False)
    if (kind := config.get("encoder_hid_dim_type")) == "text_proj":
        tensors += towers.dense("encoder_hid_proj", unet.source_widths[0], config.int("encoder_hid_dim"))
    elif kind is not None:
        raise UnsupportedModel(f"config key `{config.path}.encoder_hid_dim_type` is not known here: {kind!r:.60}")
    if (kind := config.get("class_embed_type")) in ("projection", "timestep"):
        source = config.int("projection_class_embeddings_input_dim") if kind == "projection" else unet.widths[0]
        tensors += _two_maps("class_embedding", source, unet.time_width)
    elif kind is None and (classes := config.optional_int("num_class_embeds", minimum=1)) is not None:
        tensors.append(towers.table("class_embedding", classes, unet.time_width))
    elif kind not in (None, "identity"):
        raise UnsupportedModel(f"config key `{config.path}.class_embed_type` is not known here: {kind!r:.60}")
    if (kind := config.get("addition_embed_type")) == "text_time":
        tensors += _two_maps("add_embedding", config.int("projection_class_embeddings_input_dim"), unet.time_width)
    elif kind is not None:
        raise UnsupportedModel(f"config key `{config.path}.addition_embed_type` is not known here: {kind!r:.60}")
    return tuple(tensors)


def _two_maps(name: str, source: int, width: int) -> tuple[Tensor, ...]:
    return (*towers.dense(f"{name}.linear_1", width, source), *towers.dense(f"{name}.linear_2", width, width))


def _down_block(unet: _Unet, level: int, *, attends: bool) -> tuple[Tensor, ...]:
    prefix, target = f"down_blocks.{level}", unet.widths[level]
    source = unet.widths[max(level - 1, 0)]
    tensors: list[Tensor] = []
    for index in range(unet.resnets[level]):
        tensors += _resnet(unet, f"{prefix}.resnets.{index}", target if index else source, target)
        if attends:
            tensors += _transformer(unet, f"{prefix}.attentions.{index}", level)
    if level != len(unet.widths) - 1:
        tensors += convolutional.resample(f"{prefix}.downsamplers.0", target)
    return tuple(tensors)


def _middle(config: Config, unet: _Unet) -> tuple[Tensor, ...]:
    """Two residual blocks around a transformer, at the lowest resolution; a config may say null and mean none."""
    if "mid_block_type" in config.raw() and not config.has("mid_block_type"):
        return ()
    kind = config.str("mid_block_type", default="UNetMidBlock2DCrossAttn")
    if kind not in ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"):
        raise UnsupportedModel(f"config key `{config.path}.mid_block_type` is not known here: `{kind}`")
    width, attends = unet.widths[-1], kind == "UNetMidBlock2DCrossAttn"
    return (
        *_resnet(unet, "mid_block.resnets.0", width, width),
        *(_transformer(unet, "mid_block.attentions.0", len(unet.widths) - 1) if attends else ()),
        *(_resnet(unet, "mid_block.resnets.1", width, width) if attends else ()),
    )


def _up_block(unet: _Unet, step: int, *, attends: bool) -> tuple[Tensor, ...]:
    """One resolution on the way up: every residual block also takes what the way down left at this resolution."""
    levels = len(unet.widths)
    level = levels - 1 - step
    prefix, target = f"up_blocks.{step}", unet.widths[level]
    before, below = unet.widths[min(level + 1, levels - 1)], unet.widths[max(level - 1, 0)]
    count = unet.resnets[level] + 1
    tensors: list[Tensor] = []
    for index in range(count):
        carried = before if index == 0 else target
        skipped = below if index == count - 1 else target
        tensors += _resnet(unet, f"{prefix}.resnets.{index}", carried + skipped, target)
        if attends:
            tensors += _transformer(unet, f"{prefix}.attentions.{index}", level)
    if step != levels - 1:
        tensors += convolutional.resample(f"{prefix}.upsamplers.0", target)
    return tuple(tensors)


def _resnet(unet: _Unet, name: str, source: int, target: int) -> tuple[Tensor, ...]:
    return convolutional.resnet(name, source, target, time_width=unet.time_width)


def _transformer(unet: _Unet, name: str, level: int) -> tuple[Tensor, ...]:
    """A stack of layers that attend to the image and to the prompt, between two projections."""
    width, source = unet.widths[level], unet.source_widths[level]
    one = (
        *_attention("attn1", width, width),
        *_attention("attn2", width, source),
        *towers.dense("ff.net.0.proj", 8 * width, width),
        *towers.dense("ff.net.2", width, 4 * width),
        *blocks.norms(("norm1", "norm2", "norm3"), width, bias=True),
    )
    return (
        *convolutional.group_norm(f"{name}.norm", width),
        *_projection(unet, f"{name}.proj_in", width),
        *towers.stack(f"{name}.transformer_blocks", one, unet.depths[level]),
        *_projection(unet, f"{name}.proj_out", width),
    )


def _projection(unet: _Unet, name: str, width: int) -> tuple[Tensor, ...]:
    return towers.dense(name, width, width) if unet.linear else towers.conv(name, width, width, 1, 1, bias=True)


def _attention(name: str, width: int, source: int) -> tuple[Tensor, ...]:
    return (
        *towers.dense(f"{name}.to_q", width, width, bias=False),
        *towers.dense(f"{name}.to_k", width, source, bias=False),
        *towers.dense(f"{name}.to_v", width, source, bias=False),
        *towers.dense(f"{name}.to_out.0", width, width),
    )
