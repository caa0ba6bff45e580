"""Decoders whose layers differ in more than a window: other heads, gates, sinks or experts from layer to layer.

Llama 4, MiMo V2, MiniMax M3, DBRX, Arctic, JetMoE.

Source: the modelling code, configuration defaults and checkpoint names of transformers 5.23; vLLM 0.33.0 for MiMo V2's
names, 0.12 for Arctic.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.attention import Cache, FullAttention, IndexerKeys
from memplan.domain.model import Mlp
from memplan.domain.tensors import Role, Shard, ShardKind, Tensor
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder, Frame, Routed, shape
from memplan.introspect.families.routing import after_dense, listed_or, shared_of
from memplan.introspect.stack import Feed, Mixer, key, per_layer
from memplan.introspect.windows import FULL, SLIDING, typed
from memplan.records import replace

_CORRECTION = "mlp.gate.e_score_correction_bias"


# Llama 4: layers without rotary positions see everything, the others a chunk.
def _llama4_types(config: Config, num_layers: int) -> Sequence[str]:
    every = config.int("no_rope_layer_interval", default=4)
    rotary: Sequence[int] = [int((index + 1) % every != 0) for index in range(num_layers)]
    if config.has("no_rope_layers") and config.ints("no_rope_layers"):
        rotary = windows.flags(config, "no_rope_layers", num_layers)
    return tuple(windows.CHUNKED if has_rope else FULL for has_rope in rotary)


def _llama4_routed(config: Config, index: int) -> bool:
    if config.has("moe_layers"):
        return index in config.ints("moe_layers")
    return (index + 1) % config.int("interleave_moe_layer_step", default=1) == 0


LLAMA4 = Decoder(
    heads=shape(kv=8, dim=128),
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    window=typed(_llama4_types),
    mlp_prefix="feed_forward",
    intermediate=key("intermediate_size_mlp", default=16384),
    routed=Routed(
        num_experts=("num_local_experts",),
        intermediate=key("intermediate_size"),
        prefix="feed_forward.experts",
        names=("gate_up_proj", "down_proj"),
        suffix="",
        router="feed_forward.router",
        is_routed=_llama4_routed,
        shared=key("intermediate_size"),
        shared_prefix="feed_forward.shared_expert",
    ),
)


# MiMo V2: keys and values of different widths, and windowed layers with heads and sinks of their own.
def _mimo_kinds(config: Config, num_layers: int) -> Sequence[str]:
    if not config.has("hybrid_layer_pattern"):
        return tuple(SLIDING if index and (index + 1) % 6 else FULL for index in range(num_layers))
    flags = windows.flags(config, "hybrid_layer_pattern", num_layers)
    return tuple(SLIDING if is_windowed else FULL for is_windowed in flags)


def _mimo_heads(config: Config, prefix: str) -> Heads:
    """The heads of full layers, or with the prefix `swa_` those of windowed ones."""
    num_heads, kv = config.int("num_attention_heads"), config.int("num_key_value_heads", default=4)
    return Heads(
        hidden=config.int(*blocks.HIDDEN),
        num_heads=config.int(f"{prefix}num_attention_heads", default=num_heads),
        num_kv_heads=config.int(f"{prefix}num_key_value_heads", default=2 * kv if prefix else kv),
        key_width=config.int(f"{prefix}head_dim", "head_dim", default=192),
        value_width=config.int(f"{prefix}v_head_dim", "v_head_dim", default=128),
    )


def _mimo_mixers(config: Config) -> Sequence[Mixer]:
    style = Decoder(qkv_bias="attention_bias")

    def mixer(kind: str) -> Mixer:
        is_windowed = kind == SLIDING
        heads = _mimo_heads(config, "swa_" if is_windowed else "")
        window = config.int("sliding_window_size", "sliding_window", default=129)
        made = style.attention(config, heads, heads.window(window) if is_windowed else heads.full())
        which = "swa" if is_windowed else "full"
        if not config.bool(f"add_{which}_attention_sink_bias", default=is_windowed):
            return made
        units = heads.num_heads
        sink = blocks.vector("self_attn.attention_sink_bias", units, Role.ATTENTION, units=units)
        return replace(made, tensors=(*made.tensors, sink))

    return per_layer(windows.layer_types(config, config.num_layers(), _mimo_kinds), mixer)


def _mimo_routed(config: Config, index: int) -> bool:
    return after_dense(config, index) if config.has("moe_layer_freq") else listed_or(1)(config, index)


MIMO_V2 = Decoder(
    mixers=_mimo_mixers,
    routed=Routed(is_routed=_mimo_routed, shared=shared_of("n_shared_experts"), correction=_CORRECTION),
)


# MiniMax M3: most layers have an indexer that picks blocks of keys.
def _m3_mixers(config: Config) -> Sequence[Mixer]:
    heads = blocks.read_heads(config, default_kv=4, head_dim=128)
    style = Decoder(qk_norm=True)
    num_layers = config.num_layers()
    sparse = config.sub("sparse_attention_config") if config.has("sparse_attention_config") else config
    flags: Sequence[int] = (0,) * num_layers
    if config.has("layer_types"):
        flags = [int(kind != FULL) for kind in windows.layer_types(config, num_layers)]
    elif sparse.has("sparse_attention_freq"):
        flags = windows.flags(sparse, "sparse_attention_freq", num_layers)

    def mixer(has_indexer: int) -> Mixer:
        made = style.attention(config, heads, heads.full())
        if not has_indexer:
            return made
        number = sparse.int("sparse_num_index_heads", "index_n_heads", default=4)
        width = sparse.int("sparse_index_dim", "index_head_dim", default=128)
        name, role = "self_attn", Role.INDEXER
        tensors = (
            *blocks.kv_column(f"{name}.index_q_proj", number * width, heads.hidden, number, role),
            *blocks.replicated(f"{name}.index_k_proj", width, heads.hidden, role),
            *blocks.norms((f"{name}.index_q_norm", f"{name}.index_k_norm"), width),
        )
        caches: tuple[Cache, ...] = (*made.caches, IndexerKeys(width))
        return replace(made, tensors=(*made.tensors, *tensors), caches=caches)

    return per_layer(flags, mixer)


MINIMAX_M3 = Decoder(
    mixers=_m3_mixers,
    intermediate=key("dense_intermediate_size", "intermediate_size"),
    routed=Routed(
        intermediate=key("intermediate_size"),
        prefix="block_sparse_moe.experts.*",
        names=("w1", "w3", "w2"),
        router="block_sparse_moe.gate",
        correction="block_sparse_moe.e_score_correction_bias",
        is_routed=lambda config, index: (
            after_dense(config, index) if config.has("moe_layer_freq") else listed_or(0)(config, index)
        ),
        shared=lambda config: (
            config.int("shared_intermediate_size", default=3072, minimum=0)
            if config.int("n_shared_experts", default=1, minimum=0)
            else 0
        ),
        shared_prefix="block_sparse_moe.shared_experts",
    ),
)


def _dbrx_heads(config: Config) -> Heads:
    own = config.sub("attn_config") if config.has("attn_config") else config
    return blocks.read_heads(config, default_kv=own.int("kv_n_heads", default=1))


def _dbrx_feeds(config: Config) -> Sequence[Feed]:
    """Every expert's rows lie one under another in three matrices."""
    own, hidden = config.sub("ffn_config"), config.int(*blocks.HIDDEN)
    inner, number = own.int("ffn_hidden_size", default=3584), own.int("moe_num_experts", default=4)
    tensors = (
        *blocks.replicated("ffn.router.layer", number, hidden, Role.ROUTER),
        *blocks.experts(hidden, inner, number, prefix="ffn.experts.mlp", names=("w1", "v1", "w2"), suffix=""),
    )
    per_token = own.int("moe_top_k", default=1)
    shape_of_experts = Mlp(intermediate=inner, num_experts=number, experts_per_token=per_token)
    return (Feed(tensors=tensors, mlp=shape_of_experts),) * config.num_layers()


DBRX = Decoder(
    heads=_dbrx_heads,
    attention_prefix="norm_attn_norm.attn",
    attention_names=("Wqkv", "out_proj"),
    feeds=_dbrx_feeds,
    norms=("norm_attn_norm.norm_1", "norm_attn_norm.norm_2"),
    frame=Frame(layers="transformer.blocks.", embedding="transformer.wte", final_norm="transformer.norm_f"),
)


def _arctic_feeds(config: Config) -> Sequence[Feed]:
    """Routed experts in some layers, with a dense residual MLP as wide as the hidden size beside them."""
    hidden, inner = config.int(*blocks.HIDDEN), config.int("intermediate_size")
    number, step = config.int("num_local_experts", default=8), config.int("moe_layer_frequency", default=2)
    w132 = ("w1", "w3", "w2")

    def feed(is_routed: bool) -> Feed:
        if not is_routed:
            dense = blocks.mlp(hidden, inner, prefix="block_sparse_moe.mlp", names=w132)
            return Feed(tensors=dense, mlp=Mlp(intermediate=inner))
        beside = config.bool("use_residual", "parallel_attn_mlp_res", default=False)
        tensors = [
            *blocks.replicated("block_sparse_moe.gate", number, hidden, Role.ROUTER),
            *blocks.experts(hidden, inner, number, prefix="block_sparse_moe.experts.*", names=w132),
        ]
        if beside:
            tensors += blocks.mlp(hidden, hidden, prefix="residual_mlp", names=w132, role=Role.SHARED_EXPERT)
            tensors += blocks.norm("residual_layernorm", hidden)
        shape_of_experts = Mlp(
            intermediate=inner,
            num_experts=number,
            experts_per_token=config.int("num_experts_per_tok", default=1),
            shared_intermediate=hidden if beside else 0,
        )
        return Feed(tensors=tuple(tensors), mlp=shape_of_experts)

    return per_layer([(index + 1) % step == 0 for index in range(config.num_layers())], feed)


ARCTIC = Decoder(feeds=_arctic_feeds)


def _jetmoe_mixers(config: Config) -> Sequence[Mixer]:
    """JetMoE routes attention too: experts have query and output maps of their own, keys and values are shared."""
    hidden, kv = config.int(*blocks.HIDDEN), config.int("num_key_value_heads", default=16)
    width, number = config.int("kv_channels", default=128), config.int("num_local_experts", default=8)
    per_token = config.int("num_experts_per_tok", default=2)
    name, cut = "self_attention.experts", Shard(ShardKind.EXPERTS, kv * width)
    expert = Tensor(
        name=f"{name}.input_linear.weight",
        shape=(kv * width, hidden),
        role=Role.EXPERT,
        shard=cut,
        count=number,
        linear=True,
    )
    tensors = (
        expert,
        replace(expert, name=f"{name}.output_linear.weight", shape=(hidden, kv * width)),
        blocks.vector(f"{name}.bias", hidden, Role.ATTENTION),
        *blocks.replicated(f"{name}.router.layer", number, hidden, Role.ROUTER),
        *blocks.kv_column("self_attention.kv_proj", 2 * kv * width, hidden, kv, Role.ATTENTION),
    )
    mixer = Mixer(
        tensors=tensors,
        caches=(FullAttention(kv, width, width),),
        query_width=kv * per_token * width,
        num_heads=kv * per_token,
    )
    return (mixer,) * config.num_layers()


def _jetmoe_feeds(config: Config) -> Sequence[Feed]:
    routed = Routed(
        num_experts=("num_local_experts",),
        intermediate=key("intermediate_size", default=5632),
        prefix="mlp",
        names=("input_linear", "output_linear"),
        router="mlp.router.layer",
    )
    feed = routed.feed(config)
    bias = blocks.vector("mlp.bias", config.int(*blocks.HIDDEN), Role.MLP)
    return (replace(feed, tensors=(*feed.tensors, bias)),) * config.num_layers()


JETMOE = Decoder(mixers=_jetmoe_mixers, feeds=_jetmoe_feeds, frame=Frame(tied=True))
