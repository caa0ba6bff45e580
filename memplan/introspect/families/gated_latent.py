"""Latent attentions with a gate, sinks or norms of their own beside them: HY V4, A.X K2, dots.note, Bailing hybrids.

Source: the modelling code, configuration defaults and checkpoint names of transformers 5.23; vLLM 0.33.0
(`bailing_moe_linear.py`, `bailing_moe_v3.py`, `models/hy_v4`) for Ring 2.5 and for the names of the Bailing hybrids.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.attention import LatentWindow
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families import moe, mtp
from memplan.introspect.families.decoder import Decoder, Frame, Routed, architecture
from memplan.introspect.families.mla import sparse_mixer
from memplan.introspect.families.routing import after_dense, listed_or, shared_of
from memplan.introspect.latent import Latent, indexer_tensors, latent_mixer, latent_tensors, read_latent
from memplan.introspect.recurrent import KimiDelta, kimi_delta, lightning_state
from memplan.introspect.stack import Feed, Mixer, is_set, key, per_layer
from memplan.records import replace

_CORRECTION = "mlp.gate.e_score_correction_bias"
_INDEXED = "indexed_attention"
_LINEAR = "linear_attention"
_ROLE = Role.ATTENTION


# HY V4: gated sparse attention with sinks, between hyper-connections that mix several residual streams.
def _hy_mixers(config: Config) -> Sequence[Mixer]:
    latent = read_latent(config, nope_width=192, value_width=256)
    num_layers, heads = config.num_layers(), latent.num_heads
    if config.has("indexer_types"):
        flags = [kind == "full" for kind in config.strs("indexer_types")[:num_layers]]
        flags += [False] * (num_layers - len(flags))
    else:
        flags = [index == 0 or index % 4 == 1 for index in range(num_layers)]

    def mixer(has_indexer: bool) -> Mixer:
        made = sparse_mixer(config, latent, 16, has_indexer=has_indexer)
        extra = (
            blocks.vector("self_attn.learnable_sink_param", heads, _ROLE, units=heads),
            *blocks.column("self_attn.linear_gate", latent.value_out_width, latent.hidden, heads, _ROLE),
        )
        return replace(made, tensors=(*made.tensors, *extra))

    return per_layer(flags, mixer)


def _connection(config: Config, name: str, outputs: int, scales: int, fn: str) -> tuple[Tensor, ...]:
    """A small map from all residual streams, its offsets and its scales."""
    streams = config.int("hc_mult", default=4)
    width, rows = streams * config.int(*blocks.HIDDEN), outputs * streams
    return (
        Tensor(name=f"{name}{fn}fn", shape=(rows, width), role=Role.OTHER, dtype=DType.F32),
        blocks.vector(f"{name}{fn}base", rows, Role.OTHER, dtype=DType.F32),
        blocks.vector(f"{name}{fn}scale", scales, Role.OTHER, dtype=DType.F32),
    )


def _hy_norms(config: Config) -> tuple[Tensor, ...]:
    return (
        *blocks.norms(("input_layernorm", "post_attention_layernorm"), config.int(*blocks.HIDDEN)),
        *_connection(config, "hc_attn_layer.hc_pre.", 2, 2, "hc_"),
        *_connection(config, "hc_mlp_layer.hc_pre.", 2, 2, "hc_"),
    )


HY_V4 = Decoder(
    mixers=_hy_mixers,
    routed=Routed(
        is_routed=listed_or(1),
        intermediate=key("moe_intermediate_size", default=768),
        shared=shared_of("n_shared_experts", default=1, width=key("moe_intermediate_size", default=768)),
        correction=_CORRECTION,
    ),
    layer_norms=_hy_norms,
    frame=Frame(extra=lambda config: _connection(config, "model.hc_head.", 1, 1, "hc_head_")),
)


# A.X K2: the query's up-projection holds an output gate as well, and norms have a small gate over them.
def _axk2_mixers(config: Config) -> Sequence[Mixer]:
    latent = read_latent(config, query_rank=384, latent_width=128, nope_width=64, rope_width=32, value_width=64)
    made = sparse_mixer(config, latent, 16)
    fused = "self_attn.q_b_proj.weight"
    rank = latent.query_rank or 0
    widened = blocks.column(
        "self_attn.q_b_proj", latent.query_width + latent.value_out_width, 2 * rank, latent.num_heads, _ROLE
    )
    tensors = tuple(widened[0] if tensor.name == fused else tensor for tensor in made.tensors)
    return (replace(made, tensors=tensors),) * config.num_layers()


def _gated_norm(config: Config, name: str) -> tuple[Tensor, ...]:
    hidden, rank = config.int(*blocks.HIDDEN), config.int("gated_norm_rank", default=16)
    return (
        *blocks.norm(f"{name}.norm", hidden),
        *blocks.replicated(f"{name}.W_down", rank, hidden, Role.NORM),
        *blocks.replicated(f"{name}.W_up", hidden, rank, Role.NORM),
    )


def _is_routed(config: Config, index: int) -> bool:
    """All layers but the first, unless the config says otherwise in one way or another."""
    return (listed_or(1) if config.has("mlp_layer_types") else _after_first)(config, index)


def _after_first(config: Config, index: int) -> bool:
    return after_dense(config if config.has("first_k_dense_replace") else config.having(first_k_dense_replace=1), index)


_AXK2 = Decoder(
    routed=Routed(
        is_routed=lambda config, index: (listed_or(1) if config.has("mlp_layer_types") else _after_first)(
            config, index
        ),
        intermediate=key("moe_intermediate_size", default=512),
        shared=shared_of("n_shared_experts", default=1, width=key("moe_intermediate_size", default=512)),
        correction=_CORRECTION,
    ),
)


def _axk2_feeds(config: Config) -> Sequence[Feed]:
    """Layers with experts gate the norm before them, dense layers do not."""
    name = "post_attention_layernorm"

    def normed(feed: Feed) -> Feed:
        is_routed = feed.mlp is not None and feed.mlp.num_experts
        norm = _gated_norm(config, name) if is_routed else blocks.norm(name, config.int(*blocks.HIDDEN))
        return replace(feed, tensors=(*feed.tensors, *norm))

    feeds = _AXK2.make_feeds(config)
    made = {id(feed): normed(feed) for feed in feeds}
    return [made[id(feed)] for feed in feeds]


AXK2 = Decoder(
    mixers=_axk2_mixers, feeds=_axk2_feeds, layer_norms=lambda config: _gated_norm(config, "input_layernorm")
)


# dots.note: sparse latents of the whole context, and latents of another shape in a window.
_DOTS_WINDOWED = {
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "kv_lora_rank": 1024,
    "head_dim": 256,
    "qk_nope_head_dim": 192,
    "v_head_dim": 128,
}


def _dots_types(config: Config, num_layers: int) -> Sequence[str]:
    has_windows = config.bool("use_sliding_window", default=True)
    return tuple(
        windows.SLIDING if has_windows and index > 1 and index % 4 != 1 else _INDEXED for index in range(num_layers)
    )


def _dots_latent(config: Config, index: int, kind: str) -> Latent:
    """The shape of one layer, by `per_layer_config` or by the keys that start with `swa_`."""
    own = config
    if config.has("per_layer_config"):
        listed = config.sub("per_layer_config")
        if listed.has(str(index)):
            own = config.having(**listed.sub(str(index)).raw())
    elif kind == windows.SLIDING:
        found = {name: config.int(f"swa_{name}", default=default) for name, default in _DOTS_WINDOWED.items()}
        rope = config.int("swa_qk_rope_head_dim", default=max(found["head_dim"] - found["qk_nope_head_dim"], 0))
        own = config.having(**found, qk_rope_head_dim=rope)
    return read_latent(own, query_rank=1024)


def _dots_mixer(config: Config, latent: Latent, kind: str) -> Mixer:
    extra = (
        *blocks.norm("self_attn.k_rope_only_layernorm", latent.rope_width),
        *blocks.column("self_attn.g_proj", latent.num_heads, latent.hidden, latent.num_heads, _ROLE),
    )
    bias = is_set(config, "attention_bias")
    if kind == windows.SLIDING:
        window = config.int("sliding_window", "sliding_window_size", default=512)
        cache = LatentWindow(latent.latent_width, latent.rope_width, window)
        return replace(latent_mixer(latent, *extra, bias=bias), caches=(cache,))
    if kind not in (windows.FULL, _INDEXED):
        raise windows.unknown_kind(kind, (windows.FULL, _INDEXED, windows.SLIDING))
    # An older config calls layers with an indexer full, and has no `per_layer_config`.
    if not config.bool("use_dsa", default=kind == _INDEXED or not config.has("per_layer_config")):
        return latent_mixer(latent, *extra, bias=bias)
    tensors, keys = indexer_tensors(config, latent, 64)
    return latent_mixer(latent, *extra, *tensors, bias=bias, indexer=keys)


def _dots_mixers(config: Config) -> Sequence[Mixer]:
    kinds = windows.layer_types(config, config.num_layers(), _dots_types)
    shapes = [(_dots_latent(config, index, kind), kind) for index, kind in enumerate(kinds)]
    return per_layer(shapes, lambda own: _dots_mixer(config, *own))


DOTS_NOTE = Decoder(
    mixers=_dots_mixers,
    routed=Routed(
        is_routed=_is_routed,
        intermediate=key("moe_intermediate_size", default=1536),
        shared=shared_of(
            "n_shared_experts",
            default=1,
            width=key("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size", default=1536),
        ),
        correction=_CORRECTION,
    ),
)


# Bailing hybrids: a latent attention at the end of every group of layers. Before it, in Ring 2.5, lightning attention,
# in the third version Kimi's delta attention; both are called `bailing_hybrid`, and the class tells them apart.
def _bailing_types(group: int) -> windows.Pattern:
    def pattern(config: Config, num_layers: int) -> Sequence[str]:
        every = config.int("layer_group_size", default=group, minimum=0)
        return tuple(_LINEAR if every and (index + 1) % every else windows.FULL for index in range(num_layers))

    return pattern


def _ring_heads(config: Config) -> Heads:
    heads = blocks.read_heads(config)
    return replace(heads, num_kv_heads=heads.num_heads)


def _ring_linear(config: Config) -> Mixer:
    heads = _ring_heads(config)
    has_bias = config.bool("use_bias", default=False)
    width, number, role = heads.query_width, heads.num_heads, Role.STATE
    tensors = (
        *blocks.attention(
            heads,
            prefix="attention",
            names=("query_key_value", "dense"),
            qkv_bias=has_bias or config.bool("use_qkv_bias", default=False),
            out_bias=has_bias,
        ),
        *(
            blocks.norms(("attention.query_layernorm", "attention.key_layernorm"), heads.key_width)
            if config.bool("use_qk_norm", default=False)
            else ()
        ),
        *blocks.column("attention.g_proj", width, heads.hidden, number, role),
        blocks.vector("attention.g_norm.weight", width, units=number),
    )
    return Mixer(tensors=tensors, caches=(lightning_state(number, heads.key_width),), kind=_LINEAR)


def _renamed(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The published names: `attention` for `self_attn`, `dense` for a latent's output."""
    return tuple(
        replace(tensor, name=tensor.name.replace("self_attn.", "attention.").replace(".o_proj.", ".dense."))
        for tensor in tensors
    )


def _ring_mixers(config: Config) -> Sequence[Mixer]:
    def mixer(kind: str) -> Mixer:
        if kind == _LINEAR:
            return _ring_linear(config)
        if not config.has("kv_lora_rank"):  # Ring-linear 2.0
            heads = blocks.read_heads(config)
            return moe.BAILING.attention(config, heads, heads.full())
        latent = read_latent(config, query_rank=None)
        return replace(latent_mixer(latent), tensors=_renamed(latent_tensors(latent)))

    return per_layer(windows.layer_types(config, config.num_layers(), _bailing_types(1)), mixer)


def _bailing_gate(config: Config, latent: Latent) -> tuple[Tensor, ...]:
    """A latent's output gate: a number for every head, or for every channel."""
    kind = config.str("gated_attention_proj_granularity_type", default="head_wise")
    width = {"head_wise": latent.num_heads, "element_wise": latent.value_out_width}.get(kind, 0)
    return blocks.column("self_attn.g_proj", width, latent.hidden, latent.num_heads, _ROLE) if width else ()


def _bailing_mixers(config: Config) -> Sequence[Mixer]:
    def mixer(kind: str) -> Mixer:
        if kind == _LINEAR:
            made = kimi_delta(
                KimiDelta(
                    hidden=config.int(*blocks.HIDDEN),
                    num_heads=config.int(*blocks.HEADS),
                    head_width=config.int("linear_head_dim", "head_dim", default=128),
                    kernel=config.int("short_conv_kernel_size", default=4),
                    full_rank_gate=True,
                    full_rank_decay=True,
                )
            )
            return replace(
                made, tensors=tuple(replace(t, name=t.name.replace("self_attn.", "attention.")) for t in made.tensors)
            )
        if kind != windows.FULL:
            raise windows.unknown_kind(kind, (windows.FULL, _LINEAR))
        latent = read_latent(config, query_rank=None)
        made = latent_mixer(latent, *_bailing_gate(config, latent), bias=is_set(config, "attention_bias"))
        return replace(made, tensors=_renamed(made.tensors))

    return per_layer(windows.layer_types(config, config.num_layers(), _bailing_types(6)), mixer)


_BAILING_ROUTED = Routed(
    num_experts=("num_experts", "num_local_experts", "n_routed_experts"),
    experts_per_token=("num_experts_per_tok", "num_experts_per_token"),
    is_routed=listed_or(0),
    shared=lambda config: (
        config.int("num_shared_experts", "n_shared_experts", default=0, minimum=0)
        * config.int("moe_shared_expert_intermediate_size", "moe_intermediate_size")
    ),
    correction="mlp.gate.expert_bias",
)
_BAILING_FRAME = Frame(embedding="model.word_embeddings")
RING: Decoder = Decoder(
    mixers=_ring_mixers,
    routed=_BAILING_ROUTED,
    frame=replace(_BAILING_FRAME, mtp=mtp.appended(lambda: RING, mtp.BAILING)),
)
BAILING_V3: Decoder = Decoder(
    mixers=_bailing_mixers,
    routed=replace(
        _BAILING_ROUTED,
        is_routed=listed_or(2),
        shared=lambda config: (
            config.int("num_shared_experts", "n_shared_experts", default=1, minimum=0)
            * config.int("moe_intermediate_size", default=768)
        ),
    ),
    frame=replace(_BAILING_FRAME, mtp=mtp.appended(lambda: BAILING_V3, mtp.BAILING)),
)


def bailing_hybrid(config: Config, name: str) -> ModelSpec:
    """Ring 2.5 or the third version of Bailing, by the class."""
    style = RING if "V2_5" in architecture(config) or config.has("group_norm_size") else BAILING_V3
    return style(config, name)
