"""Decoders of Mamba layers, alone or with attention layers among or inside them.

Source: the modelling code, configuration defaults and checkpoint names of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.model import Mlp
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks
from memplan.introspect.blocks import Heads, exact_div
from memplan.introspect.config import Config
from memplan.introspect.families import moe
from memplan.introspect.families.decoder import Decoder, Frame, Routed, shape
from memplan.introspect.recurrent import Mamba1, Mamba2, mamba1, mamba2
from memplan.introspect.stack import NO_FEED, Feed, Mixer, key, per_layer
from memplan.records import replace
from memplan.units import ceil_div

_BACKBONE = Frame(layers="backbone.layers.", embedding="backbone.embeddings", final_norm="backbone.norm_f", tied=True)
_FEED_FORWARD = Decoder(
    heads=shape(kv=8),
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    mlp_prefix="feed_forward",
    mlp_bias="mlp_bias",
    norms=("input_layernorm", "pre_ff_layernorm"),
    frame=Frame(final_norm="model.final_layernorm"),
)
_ATTENTION = ("attention", "full_attention")
_MAMBA = ("mamba", "mamba2", "linear_attention")


def _no_feeds(config: Config) -> Sequence[Feed]:
    return (NO_FEED,) * config.num_layers()


def _mamba1_layers(config: Config) -> Sequence[Mixer]:
    hidden = config.int(*blocks.HIDDEN, default=768)
    layer = mamba1(
        Mamba1(
            hidden=hidden,
            inner=config.optional_int("intermediate_size", minimum=1) or config.int("expand", default=2) * hidden,
            state=config.int("state_size", "d_state", default=16),
            kernel=config.int("conv_kernel", "d_conv", default=4),
            step_rank=_step_rank(config, "time_step_rank", hidden),
            bias=config.bool("use_bias", default=False),
            conv_bias=config.bool("use_conv_bias", default=True),
        )
    )
    return (layer,) * config.num_layers()


def _step_rank(config: Config, name: str, hidden: int) -> int:
    """The rank of the step projection: a number, or `auto` for a sixteenth of the hidden size."""
    return ceil_div(hidden, 16) if config.get(name) in (None, "auto") else config.int(name)


def _mamba2_layers(config: Config) -> Sequence[Mixer]:
    hidden = config.int(*blocks.HIDDEN)
    bias = config.bool("use_bias", default=False)
    layer = mamba2(
        Mamba2(
            hidden=hidden,
            inner=config.int("expand", default=2) * hidden,
            num_heads=config.int("num_heads", default=128),
            groups=config.int("n_groups", default=8),
            state=config.int("state_size", default=128),
            kernel=config.int("conv_kernel", default=4),
            in_bias=bias,
            out_bias=bias,
            conv_bias=config.bool("use_conv_bias", default=True),
        )
    )
    return (layer,) * config.num_layers()


MAMBA = Decoder(mixers=_mamba1_layers, feeds=_no_feeds, norms=("norm",), frame=_BACKBONE)
MAMBA2 = Decoder(mixers=_mamba2_layers, feeds=_no_feeds, norms=("norm",), frame=replace(_BACKBONE, tied=False))


def _jamba_mixers(config: Config) -> Sequence[Mixer]:
    """One attention layer in every period of Mamba layers."""
    hidden = config.int(*blocks.HIDDEN)
    period, offset = config.int("attn_layer_period", default=8), config.int("attn_layer_offset", default=4, minimum=0)
    heads = blocks.read_heads(config, default_kv=8)

    def mixer(is_attention: bool) -> Mixer:
        if is_attention:
            return _FEED_FORWARD.attention(config.having(attention_bias=False), heads, heads.full())
        return mamba1(
            Mamba1(
                hidden=hidden,
                inner=config.int("mamba_expand", default=2) * hidden,
                state=config.int("mamba_d_state", default=16),
                kernel=config.int("mamba_d_conv", default=4),
                step_rank=_step_rank(config, "mamba_dt_rank", hidden),
                bias=config.bool("mamba_proj_bias", default=False),
                conv_bias=config.bool("mamba_conv_bias", default=True),
                inner_norms=True,
            ),
            prefix="mamba",
        )

    return per_layer([index % period == offset for index in range(config.num_layers())], mixer)


def _jamba_routed(config: Config, index: int) -> bool:
    step, offset = config.int("expert_layer_period", default=2), config.int("expert_layer_offset", default=1, minimum=0)
    return index % step == offset and config.int("num_experts", default=16) > 1


JAMBA = replace(
    _FEED_FORWARD,
    mixers=_jamba_mixers,
    mlp_bias=False,
    routed=Routed(
        intermediate=key("intermediate_size"),
        prefix="feed_forward.experts.*",
        router="feed_forward.router",
        is_routed=_jamba_routed,
    ),
)


def read_mamba2(config: Config, *, state: int = 256, groups: int = 1, inner: int | None = None) -> Mamba2:
    """A Mamba 2 mixer under the names that hybrid models use; the arguments are a class's defaults."""
    hidden = config.int(*blocks.HIDDEN)
    width = inner or config.int("mamba_expand", default=2) * hidden
    heads = config.int("mamba_n_heads", default=128)
    exact_div(width, heads, "Mamba width", "heads")
    bias = config.bool("mamba_proj_bias", default=False)
    return Mamba2(
        hidden=hidden,
        inner=width,
        num_heads=heads,
        groups=config.int("mamba_n_groups", default=groups),
        state=config.int("mamba_d_state", default=state),
        kernel=config.int("mamba_d_conv", default=4),
        in_bias=bias,
        out_bias=bias,
        conv_bias=config.bool("mamba_conv_bias", default=True),
    )


def _hybrid_mixers(config: Config, attends: Sequence[bool]) -> Sequence[Mixer]:
    """Attention in some layers, Mamba 2 in the others."""
    heads = blocks.read_heads(config)

    def mixer(is_attention: bool) -> Mixer:
        if is_attention:
            return _FEED_FORWARD.attention(config, heads, heads.full())
        return mamba2(read_mamba2(config), prefix="mamba")

    return per_layer(attends, mixer)


def _bamba_mixers(config: Config) -> Sequence[Mixer]:
    chosen = config.ints("attn_layer_indices", default=())
    kv = config if config.has("num_key_value_heads") else config.having(num_key_value_heads=8)
    return _hybrid_mixers(kv, [index in chosen for index in range(config.num_layers())])


BAMBA = replace(_FEED_FORWARD, mixers=_bamba_mixers)


def _granite_mixers(config: Config) -> Sequence[Mixer]:
    num_layers = config.num_layers()
    kinds = config.strs("layer_types", "layers_block_type", default=("mamba",) * num_layers)
    if len(kinds) < num_layers:
        raise UnsupportedModel(f"config key `layer_types` names {len(kinds)} layers of {num_layers}")
    if wrong := set(kinds[:num_layers]) - {*_ATTENTION, *_MAMBA}:
        raise UnsupportedModel(f"config key `layer_types` has an unknown kind: `{sorted(wrong)[0][:40]}`")
    return _hybrid_mixers(config, [kind in _ATTENTION for kind in kinds[:num_layers]])


def _granite_feeds(config: Config) -> Sequence[Feed]:
    """A shared MLP in every layer, with routed experts beside it unless there are none."""
    routed = moe.GRANITEMOE.routed
    shared = config.int("shared_intermediate_size", default=1024, minimum=0)
    if config.int("num_local_experts", default=8, minimum=0) and routed:
        return (routed.feed(config.having(shared_intermediate_size=shared)),) * config.num_layers()
    hidden = config.int(*blocks.HIDDEN)
    tensors = blocks.mlp(hidden, shared, prefix="shared_mlp", names=("input_linear", "output_linear"), fused=True)
    return (Feed(tensors=tensors, mlp=Mlp(intermediate=shared)),) * config.num_layers()


GRANITEMOEHYBRID = Decoder(mixers=_granite_mixers, feeds=_granite_feeds)


def _falcon_h1_mixers(config: Config) -> Sequence[Mixer]:
    """Attention and Mamba 2 side by side in every layer."""
    heads = blocks.read_heads(config, default_kv=8)
    attention = _FEED_FORWARD.attention(config, heads, heads.full())
    hidden = config.int(*blocks.HIDDEN)
    inner = config.nullable_int("mamba_d_ssm", default=1024, minimum=1)
    state_space = mamba2(
        replace(
            read_mamba2(config, inner=inner or config.int("mamba_expand", default=2) * hidden),
            norm=config.bool("mamba_rms_norm", default=False),
            out_bias=config.bool("projectors_bias", default=False),
        ),
        prefix="mamba",
    )
    both = replace(
        attention,
        kind="mamba2",
        tensors=(*attention.tensors, *state_space.tensors),
        caches=(*attention.caches, *state_space.caches),
    )
    return (both,) * config.num_layers()


FALCON_H1 = replace(_FEED_FORWARD, mixers=_falcon_h1_mixers)


def _zamba_layers(config: Config) -> tuple[bool, ...]:
    """Which layers go through a shared transformer block beside their Mamba mixer."""
    kinds = config.strs("layers_block_type", "layer_types", default=())
    if kinds:
        if len(kinds) != config.num_layers():
            raise UnsupportedModel(f"config key `layers_block_type` names {len(kinds)} layers of {config.num_layers()}")
        return tuple(kind == "hybrid" for kind in kinds)
    hybrid = config.ints("hybrid_layer_ids", default=(6, 12, 18, 24, 30, 36, 42, 47, 51))
    return tuple(index in hybrid for index in range(config.num_layers()))


def _zamba_heads(config: Config) -> Heads:
    """Attention works on the hidden state beside the embedding, so on twice the hidden size."""
    wide = 2 * config.int(*blocks.HIDDEN)
    num_heads = config.int(*blocks.HEADS)
    head = config.int("attention_head_dim", default=exact_div(wide, num_heads, "attention width", "heads"))
    kv = config.int("num_key_value_heads", default=num_heads)
    return Heads(hidden=wide, num_heads=num_heads, num_kv_heads=kv, key_width=head, value_width=head)


def _zamba_mixers(config: Config) -> Sequence[Mixer]:
    hidden = config.int(*blocks.HIDDEN)
    bias = config.bool("add_bias_linear", default=False)
    state_space = Mamba2(
        hidden=hidden,
        inner=config.int("mamba_expand", default=2) * hidden,
        num_heads=config.int("n_mamba_heads", default=8),
        groups=config.int("mamba_ngroups", default=1),
        state=config.int("mamba_d_state", default=64),
        kernel=config.int("mamba_d_conv", default=4),
        in_bias=bias,
        out_bias=bias,
    )
    plain = mamba2(state_space, prefix="mamba")
    plain = replace(plain, tensors=(*plain.tensors, *blocks.norm("input_layernorm", hidden)))
    inside = mamba2(state_space, prefix="mamba_decoder.mamba")
    heads = _zamba_heads(config)
    hybrid = replace(
        inside,
        tensors=(
            *blocks.replicated("linear", hidden, hidden, Role.ATTENTION),
            *inside.tensors,
            *blocks.norm("mamba_decoder.input_layernorm", hidden),
            *_zamba_adapters(config, hidden),
        ),
        caches=(heads.full(), *inside.caches),
        query_width=heads.query_width,
        num_heads=heads.num_heads,
    )
    return [hybrid if is_hybrid else plain for is_hybrid in _zamba_layers(config)]


def _zamba_adapters(config: Config, hidden: int) -> tuple[Tensor, ...]:
    """What a hybrid layer adds to the shared block that it goes through: low-rank maps of its own."""
    rank = config.int("adapter_rank", default=128)
    intermediate = config.int("intermediate_size", default=4 * hidden)
    prefix = "shared_transformer.feed_forward.gate_up_proj_adapter_list"
    tensors = [
        *blocks.replicated(f"{prefix}.0", rank, hidden, Role.MLP),
        *blocks.column(f"{prefix}.1", 2 * intermediate, rank, intermediate, Role.MLP),
    ]
    if config.bool("use_shared_attention_adapter", default=False):
        for name in "qkv":
            adapter = f"shared_transformer.self_attn.linear_{name}_adapter_list"
            tensors += blocks.replicated(f"{adapter}.0", rank, 2 * hidden, Role.ATTENTION)
            tensors += blocks.column(f"{adapter}.1", 2 * hidden, rank, config.int(*blocks.HEADS), Role.ATTENTION)
    return tuple(tensors)


def _zamba_blocks(config: Config) -> tuple[Tensor, ...]:
    """The transformer blocks that all hybrid layers share, each stored once; attention reads twice the hidden size."""
    hidden, intermediate = config.int(*blocks.HIDDEN), config.int("intermediate_size", default=0, minimum=0)
    wide = _zamba_heads(config)
    bias = config.bool("add_bias_linear", default=False)
    number = min(config.int("num_mem_blocks", default=1), sum(_zamba_layers(config)))
    attention = blocks.attention(wide)[:-1]
    block = (
        *attention,
        *blocks.row("self_attn.o_proj", hidden, wide.value_out_width, wide.num_heads, Role.ATTENTION),
        *blocks.mlp(
            hidden,
            intermediate or 4 * hidden,
            prefix="feed_forward",
            names=("gate_up_proj", "down_proj"),
            bias=bias,
            fused=True,
        ),
        *blocks.norm("input_layernorm", 2 * hidden),
        *blocks.norm("pre_ff_layernorm", hidden),
    )
    return tuple(replace(t, name=f"model.layers.*.shared_transformer.{t.name}", count=number) for t in block if number)


def _zamba_feeds(config: Config) -> Sequence[Feed]:
    intermediate = config.int("intermediate_size", default=4 * config.int(*blocks.HIDDEN))
    shared = Feed(tensors=(), mlp=Mlp(intermediate=intermediate))
    return [shared if is_hybrid else NO_FEED for is_hybrid in _zamba_layers(config)]


ZAMBA2 = Decoder(
    mixers=_zamba_mixers,
    feeds=_zamba_feeds,
    norms=(),
    frame=Frame(final_norm="model.final_layernorm", tied=True, extra=_zamba_blocks),
)
