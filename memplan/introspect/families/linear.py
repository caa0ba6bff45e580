"""Decoders whose layers convolve, decay or gate instead of attending: LFM2, MiniMax-01 and M1, RecurrentGemma, RWKV.

Source: the modelling code, configuration defaults and checkpoint names of transformers 5.23; vLLM 0.12 for MiniMax M1's
names; the published RWKV-5 code for its layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.attention import LinearState
from memplan.domain.dtypes import DType
from memplan.domain.model import Mlp
from memplan.domain.tensors import Role, Shard, ShardKind, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads, exact_div
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder, Frame, Routed, shape
from memplan.introspect.recurrent import lightning_state, short_conv
from memplan.introspect.stack import Feed, Mixer, count, key, per_layer
from memplan.records import replace
from memplan.units import round_up

_LINEAR = "linear_attention"
_W132 = ("w1", "w3", "w2")


def _conv_mixers(config: Config) -> Sequence[Mixer]:
    """LFM2: attention in the layers that are named, short convolutions in the others."""
    hidden = config.int(*blocks.HIDDEN)
    heads = _attention_heads(config, 8)

    def mixer(kind: str) -> Mixer:
        if kind == windows.FULL:
            return LFM2.attention(config, heads, heads.full())
        if kind not in ("conv", "short_conv"):
            raise windows.unknown_kind(kind, (windows.FULL, "conv"))
        kernel = config.int("conv_L_cache", default=3)
        return short_conv(hidden, kernel, bias=config.bool("conv_bias", default=False))

    return per_layer(windows.layer_types(config, config.num_layers(), _conv_types), mixer)


def _attention_heads(config: Config, kv: int) -> Heads:
    return blocks.read_heads(config, default_kv=kv)


def _conv_types(config: Config, num_layers: int) -> Sequence[str]:
    full = config.ints("full_attn_idxs", default=tuple(range(num_layers)))
    return tuple(windows.FULL if index in full else "conv" for index in range(num_layers))


def _conv_intermediate(config: Config) -> int:
    """Two thirds of the stated width, rounded up, unless the config turns that off."""
    width = config.int("block_ff_dim", "intermediate_size", default=12288)
    if not config.bool("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(2 * width / 3)
    if config.has("block_ffn_dim_multiplier"):
        width = int(config.float("block_ffn_dim_multiplier") * width)
    return round_up(max(width, 1), config.int("block_multiple_of", default=256))


LFM2 = Decoder(
    attention_names=("q_proj", "k_proj", "v_proj", "out_proj"),
    qk_norm=True,
    qk_norm_names=("q_layernorm", "k_layernorm"),
    mixers=_conv_mixers,
    mlp_prefix="feed_forward",
    mlp_names=_W132,
    intermediate=_conv_intermediate,
    norms=("operator_norm", "ffn_norm"),
    frame=Frame(final_norm="model.embedding_norm", tied=True, tied_keys=("tie_embedding", "tie_word_embeddings")),
)
_LFM2_ROUTED = Routed(
    intermediate=key("moe_intermediate_size", default=1792),
    prefix="feed_forward.experts.*",
    names=_W132,
    router="feed_forward.gate",
    is_routed=lambda config, index: index >= config.int("num_dense_layers", default=2, minimum=0),
)


def _lfm2_feeds(config: Config) -> Sequence[Feed]:
    """The correction bias may be turned off."""
    has_bias = config.bool("use_expert_bias", default=True)
    routed = replace(_LFM2_ROUTED, correction="feed_forward.expert_bias" if has_bias else "")
    return replace(LFM2, intermediate=key("intermediate_size"), routed=routed).make_feeds(config)


LFM2_MOE = replace(LFM2, feeds=_lfm2_feeds)


def _lfm3_types(config: Config, num_layers: int) -> Sequence[str]:
    """Of every four layers the first is windowed, but for the very first, and the third sees everything."""
    windowed = {2: windows.FULL, 0: windows.SLIDING}
    return tuple(windowed.get(index % 4, "conv") if index else "conv" for index in range(num_layers))


def _lfm3_mixers(config: Config) -> Sequence[Mixer]:
    """LFM3: short convolutions, and attention whose heads have a gate each."""
    hidden = config.int(*blocks.HIDDEN)
    heads = blocks.read_heads(config, default_kv=4, head_dim=128)
    style = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm=True)
    gate: tuple[Tensor, ...] = ()
    if config.bool("use_attention_gate", default=True):
        gate = blocks.column("self_attn.gate_proj", heads.num_heads, hidden, heads.num_heads, Role.ATTENTION)

    def mixer(kind: str) -> Mixer:
        if kind == "conv":
            kernel = config.int("conv_L_cache", default=7)
            return short_conv(hidden, kernel, bias=config.bool("conv_bias", default=False))
        if kind not in (windows.FULL, windows.SLIDING):
            raise windows.unknown_kind(kind, (windows.FULL, windows.SLIDING, "conv"))
        window = config.nullable_int("sliding_window", default=256) if kind == windows.SLIDING else None
        made = style.attention(config, heads, heads.window(window))
        return replace(made, tensors=(*made.tensors, *gate))

    return per_layer(windows.layer_types(config, config.num_layers(), _lfm3_types), mixer)


def _lfm3_norms(config: Config) -> tuple[Tensor, ...]:
    names: tuple[str, ...] = ("operator_norm", "ffn_norm")
    if config.bool("use_sandwich_norm", default=True):
        names += ("post_operator_norm", "post_ffn_norm")
    return blocks.norms(names, config.int(*blocks.HIDDEN))


LFM3 = Decoder(
    mixers=_lfm3_mixers,
    mlp_prefix="feed_forward",
    mlp_names=_W132,
    layer_norms=_lfm3_norms,
    frame=Frame(final_norm="model.embedding_norm", tied=True),
)


def _lightning_types(config: Config, num_layers: int) -> Sequence[str]:
    """A list of 0 (lightning) and 1 (softmax), or every second layer."""
    if not config.has("attn_type_list"):
        return tuple(_LINEAR if (index + 1) % 2 == 0 else windows.FULL for index in range(num_layers))
    flags = config.ints("attn_type_list")
    if len(flags) < num_layers:
        raise UnsupportedModel(f"config key `attn_type_list` names {len(flags)} layers of {num_layers}")
    return tuple(windows.FULL if flag else _LINEAR for flag in flags[:num_layers])


def _lightning_mixers(config: Config) -> Sequence[Mixer]:
    heads = blocks.read_heads(config, default_kv=8)

    def mixer(kind: str) -> Mixer:
        if kind == windows.FULL:
            return Decoder().attention(config, heads, heads.full())
        if kind != _LINEAR:
            raise windows.unknown_kind(kind, (windows.FULL, _LINEAR))
        return _lightning(heads)

    return per_layer(windows.layer_types(config, config.num_layers(), _lightning_types), mixer)


def _lightning(heads: Heads) -> Mixer:
    """A lightning attention: no keys and values, one matrix per head, and a gate over its normed output."""
    width, number = heads.query_width, heads.num_heads
    tensors = (
        *blocks.column("self_attn.qkv_proj", 3 * width, heads.hidden, number, Role.STATE),
        *blocks.column("self_attn.output_gate", width, heads.hidden, number, Role.STATE),
        *blocks.row("self_attn.out_proj", heads.hidden, width, number, Role.STATE),
        blocks.vector("self_attn.norm.weight", width, units=number),
    )
    return Mixer(tensors=tensors, caches=(lightning_state(number, heads.key_width),), kind=_LINEAR)


MINIMAX = Decoder(
    mixers=_lightning_mixers,
    routed=Routed(
        intermediate=key("intermediate_size"),
        prefix="block_sparse_moe.experts.*",
        names=_W132,
        router="block_sparse_moe.gate",
        shared=count("shared_intermediate_size"),
        shared_prefix="shared_mlp",
    ),
)


def _griffin_mixers(config: Config) -> Sequence[Mixer]:
    """RecurrentGemma: gated linear recurrences, and an attention over a window in every third layer."""
    kinds = config.strs("block_types", "_block_types", default=("recurrent", "recurrent", "attention"))
    if not kinds or set(kinds) - {"recurrent", "attention"}:
        raise UnsupportedModel("config key `block_types` must list `recurrent` and `attention`")
    heads = blocks.read_heads(config)
    style = Decoder(attention_prefix="temporal_block", qkv_bias="attention_bias", out_bias=True)

    def mixer(kind: str) -> Mixer:
        if kind == "attention":
            window = heads.window(config.int("attention_window_size", default=2048))
            return style.attention(config, heads, window)
        return _recurrence(config, heads.hidden, heads.num_heads)

    return per_layer([kinds[index % len(kinds)] for index in range(config.num_layers())], mixer)


def _recurrence(config: Config, hidden: int, num_heads: int) -> Mixer:
    """A real-gated linear recurrent unit behind a short convolution; its gates are block-diagonal."""
    width = config.optional_int("lru_width", minimum=1) or hidden
    kernel = config.int("conv1d_width", default=4)
    block = exact_div(width, num_heads, "recurrence width", "heads")
    cut, name = Shard(ShardKind.SPLIT, num_heads), "temporal_block"
    gates = tuple(
        tensor
        for gate in ("input_gate", "recurrent_gate")
        for tensor in (
            Tensor(name=f"{name}.rg_lru.{gate}_weight", shape=(num_heads, block, block), role=Role.STATE, shard=cut),
            Tensor(name=f"{name}.rg_lru.{gate}_bias", shape=(num_heads, block), role=Role.STATE, shard=cut),
        )
    )
    tensors = (
        *blocks.column(f"{name}.linear_y", width, hidden, num_heads, Role.STATE, bias=True),
        *blocks.column(f"{name}.linear_x", width, hidden, num_heads, Role.STATE, bias=True),
        *blocks.row(f"{name}.linear_out", hidden, width, num_heads, Role.STATE, bias=True),
        *blocks.conv1d(f"{name}.conv_1d", width, kernel, num_heads, bias=True),
        blocks.vector(f"{name}.rg_lru.recurrent_param", width, Role.STATE, units=num_heads),
        *gates,
    )
    state = LinearState(
        kind="rg_lru",
        conv_elements=width * (kernel - 1),
        state_elements=width,
        shard_units=num_heads,
        state_dtype=DType.F32,
        conv_kernel=kernel,
    )
    return Mixer(tensors=tensors, caches=(state,), kind="rg_lru")


RECURRENT_GEMMA = Decoder(
    heads=shape(),
    mixers=_griffin_mixers,
    mlp_prefix="mlp_block",
    mlp_bias=True,
    intermediate=lambda config: exact_div(config.int("intermediate_size"), 2, "intermediate size", "halves"),
    norms=("temporal_pre_norm", "channel_pre_norm"),
    frame=Frame(final_norm="model.final_norm", tied=True),
)


def _rwkv_mixers(config: Config) -> Sequence[Mixer]:
    """Time mixing; the first layer also norms the embedding."""
    hidden = config.int(*blocks.HIDDEN)
    width = config.optional_int("attention_hidden_size", minimum=1) or hidden
    head_width = config.optional_int("head_size", minimum=1)
    make = _rwkv5(hidden, width, head_width) if head_width else _rwkv4(hidden, width)
    first = replace(make, tensors=(*blocks.norm("pre_ln", hidden, bias=True), *make.tensors))
    return (first, *((make,) * (config.num_layers() - 1)))


def _rwkv_maps(hidden: int, width: int, names: tuple[str, ...], units: int) -> tuple[Tensor, ...]:
    maps = (t for name in names for t in blocks.column(f"attention.{name}", width, hidden, units, Role.STATE))
    return (*maps, *blocks.row("attention.output", hidden, width, units, Role.STATE))


def _rwkv4(hidden: int, width: int) -> Mixer:
    """Version 4: a decay for every channel, and five numbers of state per channel."""
    tensors = (
        *(blocks.vector(f"attention.{name}", width, Role.STATE) for name in ("time_decay", "time_first")),
        *(blocks.vector(f"attention.time_mix_{name}", hidden, Role.STATE) for name in ("key", "value", "receptance")),
        *_rwkv_maps(hidden, width, ("key", "value", "receptance"), width),
    )
    return _rwkv_mixer(tensors, shifts=2 * hidden, state=3 * width, units=width)


def _rwkv5(hidden: int, width: int, head_width: int) -> Mixer:
    """Version 5: one matrix of state per head, and a gate."""
    heads = exact_div(width, head_width, "attention width", "a head")
    mixes = ("key", "value", "receptance", "gate")
    decays = ("time_decay", "time_faaaa")
    tensors = (
        *(Tensor(name=f"attention.{name}", shape=(heads, head_width), role=Role.STATE) for name in decays),
        *(blocks.vector(f"attention.time_mix_{name}", hidden, Role.STATE) for name in mixes),
        *_rwkv_maps(hidden, width, mixes, heads),
        *blocks.norm("attention.ln_x", width, bias=True),
    )
    return _rwkv_mixer(tensors, shifts=2 * hidden, state=width * head_width, units=heads)


def _rwkv_mixer(tensors: tuple[Tensor, ...], *, shifts: int, state: int, units: int) -> Mixer:
    cache = LinearState(
        kind="rwkv", conv_elements=shifts, state_elements=state, shard_units=units, state_dtype=DType.F32
    )
    return Mixer(tensors=tensors, caches=(cache,), kind="rwkv")


def _rwkv_feeds(config: Config) -> Sequence[Feed]:
    hidden = config.int(*blocks.HIDDEN)
    is_fifth = config.has("head_size")
    inner = config.optional_int("intermediate_size", minimum=1)
    inner = inner or (int(hidden * 3.5) // 32 * 32 if is_fifth else 4 * hidden)
    name, role = "feed_forward", Role.MLP
    tensors = (
        *(blocks.vector(f"{name}.time_mix_{mix}", hidden, role) for mix in ("key", "receptance")),
        *blocks.column(f"{name}.key", inner, hidden, inner, role),
        *blocks.replicated(f"{name}.receptance", hidden, hidden, role),
        *blocks.row(f"{name}.value", hidden, inner, inner, role),
    )
    return (Feed(tensors=tensors, mlp=Mlp(intermediate=inner, gated=False)),) * config.num_layers()


RWKV = Decoder(
    mixers=_rwkv_mixers,
    feeds=_rwkv_feeds,
    norms=("ln1", "ln2"),
    frame=Frame(
        layers="rwkv.blocks.",
        embedding="rwkv.embeddings",
        final_norm="rwkv.ln_out",
        lm_head="head",
        norm_bias=True,
    ),
)
