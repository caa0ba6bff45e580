"""Diffusion transformers that attend to image and prompt together: Stable Diffusion 3 and Flux.

Source: diffusers 0.42, `models/transformers/{transformer_sd3,transformer_flux}.py`, `models/attention.py`.
"""

from __future__ import annotations

from memplan.domain.tensors import Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.records import replace

_TIME_WIDTH = 256
_IMAGE = ("to_q", "to_k", "to_v")
_PROMPT = ("add_q_proj", "add_k_proj", "add_v_proj")


def sd3_transformer(config: Config) -> tuple[Tensor, ...]:
    """Stable Diffusion 3 and 3.5: joint layers; the last leaves the prompt as it is, some attend to the image twice."""
    head = config.int("attention_head_dim", default=64)
    width = head * config.int("num_attention_heads", default=18)
    layers = config.num_layers("num_layers", default=18)
    patch = config.int("patch_size", default=2)
    channels = config.int("in_channels", default=16)
    out_channels = config.int("out_channels", default=channels)
    norm_width = _qk_norm(config, head)
    twice = {index for index in config.ints("dual_attention_layers", default=()) if 0 <= index < layers}
    if layers - 1 in twice:
        raise UnsupportedModel(f"config key `{config.path}.dual_attention_layers` must leave out the last layer")
    side = config.int("pos_embed_max_size", default=96)
    positions = replace(towers.parameter("pos_embed.pos_embed", 1, side**2, width), is_buffer=True)
    last = _sd3_layer(width, norm_width, twice=False, last=True)
    return (
        *towers.conv("pos_embed.proj", width, channels, patch, patch, bias=True),
        positions,
        *_embedder("time_text_embed.timestep_embedder", _TIME_WIDTH, width),
        *_embedder("time_text_embed.text_embedder", config.int("pooled_projection_dim", default=2048), width),
        *towers.dense(
            "context_embedder",
            config.int("caption_projection_dim", default=width),
            config.int("joint_attention_dim", default=4096),
        ),
        *towers.stack("transformer_blocks", _sd3_layer(width, norm_width, twice=True, last=False), len(twice)),
        *towers.stack(
            "transformer_blocks", _sd3_layer(width, norm_width, twice=False, last=False), layers - 1 - len(twice)
        ),
        *towers.under(f"transformer_blocks.{layers - 1}.", last),
        *towers.dense("norm_out.linear", 2 * width, width),
        *towers.dense("proj_out", patch * patch * out_channels, width),
    )


def flux_transformer(config: Config) -> tuple[Tensor, ...]:
    """Flux 1: layers that keep prompt and image apart, then layers that hold them in one stream."""
    head = config.int("attention_head_dim", default=128)
    width = head * config.int("num_attention_heads", default=24)
    channels = config.int("in_channels", default=64)
    patch = config.int("patch_size", default=1)
    out_channels = config.int("out_channels", default=channels)
    double = (
        *towers.dense("norm1.linear", 6 * width, width),
        *towers.dense("norm1_context.linear", 6 * width, width),
        *_attention("attn", width, (*_IMAGE, *_PROMPT), ("to_out.0", "to_add_out")),
        *_norms("attn", ("norm_q", "norm_k", "norm_added_q", "norm_added_k"), head),
        *_feed_forward("ff", width),
        *_feed_forward("ff_context", width),
    )
    single = (
        *towers.dense("norm.linear", 3 * width, width),
        *towers.dense("proj_mlp", 4 * width, width),
        *towers.dense("proj_out", width, 5 * width),
        *_attention("attn", width, _IMAGE, ()),
        *_norms("attn", ("norm_q", "norm_k"), head),
    )
    guided = config.bool("guidance_embeds", default=False)
    return (
        *towers.dense("x_embedder", width, channels),
        *towers.dense("context_embedder", width, config.int("joint_attention_dim", default=4096)),
        *_embedder("time_text_embed.timestep_embedder", _TIME_WIDTH, width),
        *(_embedder("time_text_embed.guidance_embedder", _TIME_WIDTH, width) if guided else ()),
        *_embedder("time_text_embed.text_embedder", config.int("pooled_projection_dim", default=768), width),
        *towers.stack("transformer_blocks", double, config.num_layers("num_layers", default=19)),
        *towers.stack("single_transformer_blocks", single, config.num_layers("num_single_layers", default=38)),
        *towers.dense("norm_out.linear", 2 * width, width),
        *towers.dense("proj_out", patch * patch * out_channels, width),
    )


def _sd3_layer(width: int, norm_width: int, *, twice: bool, last: bool) -> tuple[Tensor, ...]:
    norms = ("norm_q", "norm_k")
    outs = ("to_out.0",) if last else ("to_out.0", "to_add_out")
    second = (*_attention("attn2", width, _IMAGE, ("to_out.0",)), *_norms("attn2", norms, norm_width))
    return (
        *towers.dense("norm1.linear", (9 if twice else 6) * width, width),
        *towers.dense("norm1_context.linear", (2 if last else 6) * width, width),
        *_attention("attn", width, (*_IMAGE, *_PROMPT), outs),
        *_norms("attn", (*norms, "norm_added_q", "norm_added_k"), norm_width),
        *(second if twice else ()),
        *_feed_forward("ff", width),
        *(() if last else _feed_forward("ff_context", width)),
    )


def _qk_norm(config: Config, head: int) -> int:
    """The width of the query-key norms; 0 when there are none."""
    kind = config.get("qk_norm")
    if kind not in (None, "rms_norm"):
        raise UnsupportedModel(f"config key `{config.path}.qk_norm` is not known here: {kind!r:.60}")
    return head if kind else 0


def _norms(prefix: str, names: tuple[str, ...], width: int) -> tuple[Tensor, ...]:
    return tuple(t for name in names for t in blocks.norm(f"{prefix}.{name}", width)) if width else ()


def _attention(prefix: str, width: int, ins: tuple[str, ...], outs: tuple[str, ...]) -> tuple[Tensor, ...]:
    return tuple(t for name in (*ins, *outs) for t in towers.dense(f"{prefix}.{name}", width, width))


def _feed_forward(prefix: str, width: int) -> tuple[Tensor, ...]:
    return (
        *towers.dense(f"{prefix}.net.0.proj", 4 * width, width),
        *towers.dense(f"{prefix}.net.2", width, 4 * width),
    )


def _embedder(prefix: str, source: int, width: int) -> tuple[Tensor, ...]:
    return (*towers.dense(f"{prefix}.linear_1", width, source), *towers.dense(f"{prefix}.linear_2", width, width))
