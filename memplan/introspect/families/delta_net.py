"""Decoders that mix delta nets with a few layers of full attention: Qwen3-Next, Qwen 3.5, OLMo Hybrid, Kimi Linear.

Source: the modelling code, configuration defaults and checkpoint names of transformers 5.23; for Kimi K3 the loader of
vLLM 0.33.0 (`models/kimi_k3`).
Checked by: the published element counts of Kimi K3 by type, and Qwen3-Next's with its predictor.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.dtypes import parse_compute_dtype
from memplan.domain.model import Mlp
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families import mtp
from memplan.introspect.families.decoder import Decoder, Frame, Routed, correction_bias, shape
from memplan.introspect.families.routing import every_step, listed_or
from memplan.introspect.latent import latent_mixer, read_latent
from memplan.introspect.recurrent import DeltaNet, KimiDelta, delta_net, kimi_delta
from memplan.introspect.stack import Feed, Mixer, is_set, key, per_layer
from memplan.records import replace
from memplan.units import round_up

_LINEAR = "linear_attention"


def _gated(heads: Heads) -> Heads:
    """The query projection also makes a gate over the output of attention."""
    return replace(heads, num_heads=2 * heads.num_heads)


def qwen_attention(config: Config, *, kv: int) -> Mixer:
    heads = blocks.read_heads(config, default_kv=kv, head_dim=256)
    bias = is_set(config, "attention_bias")
    _, *rest = blocks.attention(heads, qkv_bias=bias, out_bias=bias)
    width = _gated(heads).query_width
    query = blocks.column("self_attn.q_proj", width, heads.hidden, heads.num_heads, Role.ATTENTION, bias=bias)
    tensors = (
        *query,
        *(tensor for tensor in rest if not tensor.name.startswith("self_attn.q_proj")),
        *blocks.norms(("self_attn.q_norm", "self_attn.k_norm"), heads.key_width),
    )
    return Mixer(tensors=tensors, caches=(heads.full(),), query_width=heads.query_width, num_heads=heads.num_heads)


def read_delta_net(config: Config, *, key_heads: int = 16, value_heads: int = 32, width: int = 128) -> DeltaNet:
    """The shape of a gated delta net; the arguments are a class's defaults."""
    dtype = config.str("mamba_ssm_dtype", default="auto")
    return DeltaNet(
        hidden=config.int(*blocks.HIDDEN),
        num_key_heads=config.int("linear_num_key_heads", default=key_heads),
        num_value_heads=config.int("linear_num_value_heads", default=value_heads),
        key_head_width=config.int("linear_key_head_dim", default=width),
        value_head_width=config.int("linear_value_head_dim", default=width),
        kernel=config.int("linear_conv_kernel_dim", default=4),
        state_dtype=parse_compute_dtype(dtype),
    )


def every_fourth(config: Config, num_layers: int) -> Sequence[str]:
    step = config.int("full_attention_interval", default=4)
    return tuple(windows.FULL if (index + 1) % step == 0 else _LINEAR for index in range(num_layers))


def _fused_inputs(net: DeltaNet) -> tuple[tuple[str, int], ...]:
    """Qwen3-Next: everything in two matrices."""
    return ("in_proj_qkvz", net.conv_width + net.value_width), ("in_proj_ba", 2 * net.num_value_heads)


def split_inputs(net: DeltaNet) -> tuple[tuple[str, int], ...]:
    """Qwen 3.5: queries, keys and values in one matrix, the rest apart."""
    heads = net.num_value_heads
    return (
        ("in_proj_qkv", net.conv_width),
        ("in_proj_z", net.value_width),
        ("in_proj_b", heads),
        ("in_proj_a", heads),
    )


def _qwen_mixers(config: Config, *, kv: int, fused: bool) -> Sequence[Mixer]:
    def mixer(kind: str) -> Mixer:
        if kind == windows.FULL:
            return qwen_attention(config, kv=kv)
        if kind != _LINEAR:
            raise windows.unknown_kind(kind, (windows.FULL, _LINEAR))
        net = read_delta_net(config)
        return delta_net(net, _fused_inputs(net) if fused else split_inputs(net))

    return per_layer(windows.layer_types(config, config.num_layers(), every_fourth), mixer)


_NEXT_ROUTED = Routed(
    is_routed=every_step,
    intermediate=key("moe_intermediate_size", default=512),
    shared=key("shared_expert_intermediate_size", default=512),
    shared_prefix="mlp.shared_expert",
    shared_gate="mlp.shared_expert_gate",
)
MOE_35 = replace(
    _NEXT_ROUTED,
    is_routed=lambda config, index: True,
    prefix="mlp.experts",
    names=("gate_up_proj", "down_proj"),
    suffix="",
)


def _next_predictor(config: Config) -> tuple[Tensor, ...]:
    """A predictor's layer has full attention and experts."""
    return (
        *qwen_attention(config, kv=2).tensors,
        *_NEXT_ROUTED.feed(config).tensors,
        *QWEN3_NEXT.make_norms(config),
    )


def _next_mtp(config: Config) -> tuple[Tensor, ...]:
    """Qwen3-Next's checkpoints hold one predictor that their configs do not mention."""
    return _qwen_mtp(config, _next_predictor(config), 1)


def _qwen_mtp(config: Config, layer: tuple[Tensor, ...], default: int) -> tuple[Tensor, ...]:
    number = mtp.num_mtp_layers(config, "mtp_num_hidden_layers", "num_nextn_predict_layers", default=default)
    if not number:
        return ()
    layers = (replace(t, name=f"layers.{index}.{t.name}") for index in range(number) for t in layer)
    return mtp.QWEN_OUTER.tensors(config, layers, prefix="mtp.")


def _predictor_35(config: Config) -> tuple[Tensor, ...]:
    is_routed = config.has("num_experts")
    style = QWEN3_5_MOE if is_routed else QWEN3_5
    feed = MOE_35.feed(config) if is_routed else QWEN3_5.dense_feed(config)
    return (*qwen_attention(config, kv=2 if is_routed else 4).tensors, *feed.tensors, *style.make_norms(config))


QWEN3_NEXT: Decoder = Decoder(
    mixers=lambda config: _qwen_mixers(config, kv=2, fused=True), routed=_NEXT_ROUTED, frame=Frame(mtp=_next_mtp)
)
QWEN3_5: Decoder = Decoder(
    mixers=lambda config: _qwen_mixers(config, kv=4, fused=False),
    frame=Frame(mtp=lambda config: _qwen_mtp(config, _predictor_35(config), 0)),
)
QWEN3_5_MOE: Decoder = replace(QWEN3_5, mixers=lambda config: _qwen_mixers(config, kv=2, fused=False), routed=MOE_35)


def _olmo_mixers(config: Config) -> Sequence[Mixer]:
    """OLMo Hybrid: norms before a delta net, and after an attention."""
    hidden = config.int(*blocks.HIDDEN)
    num_heads = config.int(*blocks.HEADS)
    style = Decoder(
        heads=shape(), qkv_bias="attention_bias", out_bias="attention_bias", qk_norm=True, qk_norm_full=True
    )

    def mixer(kind: str) -> Mixer:
        if kind == windows.FULL:
            heads = blocks.read_heads(config)
            made = style.attention(config, heads, heads.full())
            norms = ("post_attention_layernorm", "post_feedforward_layernorm")
        elif kind == _LINEAR:
            key_width = config.int("linear_key_head_dim", default=int(0.75 * hidden / num_heads))
            net = read_delta_net(config, key_heads=num_heads, value_heads=num_heads)
            net = replace(
                net,
                key_head_width=key_width,
                value_head_width=config.int("linear_value_head_dim", default=2 * key_width),
            )
            made = _olmo_delta(net)
            norms = ("attention_layer_norm", "feedforward_layer_norm")
        else:
            raise windows.unknown_kind(kind, (windows.FULL, _LINEAR))
        return replace(made, tensors=(*made.tensors, *blocks.norms(norms, hidden)))

    return per_layer(windows.layer_types(config, config.num_layers(), every_fourth), mixer)


def _olmo_delta(net: DeltaNet) -> Mixer:
    """A delta net with every projection and every convolution apart."""
    inputs = (
        ("q_proj", net.key_width),
        ("k_proj", net.key_width),
        ("v_proj", net.value_width),
        ("a_proj", net.num_value_heads),
        ("b_proj", net.num_value_heads),
        ("g_proj", net.value_width),
    )
    renamed = {"linear_attn.norm.weight": "linear_attn.o_norm.weight"} | {
        "linear_attn.out_proj.weight": "linear_attn.o_proj.weight"
    }
    made = delta_net(net, inputs)
    tensors = [replace(t, name=renamed.get(t.name, t.name)) for t in made.tensors if "conv1d" not in t.name]
    for name, width in (("q", net.key_width), ("k", net.key_width), ("v", net.value_width)):
        tensors += blocks.conv1d(f"linear_attn.{name}_conv1d", width, net.kernel, net.units)
    return replace(made, tensors=tuple(tensors))


OLMO_HYBRID = Decoder(mixers=_olmo_mixers, norms=())


def _kimi_kinds(config: Config, num_layers: int) -> Sequence[str]:
    """The lists of layer numbers count from one."""
    if config.has("layer_types"):
        return windows.layer_types(config, num_layers)
    linear = config.sub("linear_attn_config") if config.has("linear_attn_config") else config
    if not linear.has("full_attn_layers"):
        return [windows.FULL if index and index % 4 == 0 else _LINEAR for index in range(num_layers)]
    full = set(linear.ints("full_attn_layers"))
    return [windows.FULL if index + 1 in full else _LINEAR for index in range(num_layers)]


def _kimi_delta(config: Config) -> KimiDelta:
    """The shape of the delta attention. Kimi K3, which has a full-rank gate, stores its decays padded to 128 heads."""
    linear = config.sub("linear_attn_config") if config.has("linear_attn_config") else config
    num_heads = linear.int("num_heads", "linear_num_heads", default=32)
    full_rank = linear.bool("use_full_rank_gate", default=False)
    return KimiDelta(
        hidden=config.int(*blocks.HIDDEN),
        num_heads=num_heads,
        head_width=linear.int("head_dim" if linear is not config else "linear_head_dim", default=128),
        kernel=linear.int("short_conv_kernel_size", "linear_conv_kernel_dim", default=4),
        full_rank_gate=full_rank,
        stored_heads=round_up(num_heads, 128) if full_rank else 0,
    )


def _kimi_mixers(config: Config) -> Sequence[Mixer]:
    bias = is_set(config, "attention_bias")
    extra = _residual_maps(config, "self_attention_res", "mlp_res")

    def mixer(kind: str) -> Mixer:
        if kind == windows.FULL:
            latent = read_latent(config, query_rank=None)
            gate: tuple[Tensor, ...] = ()
            if config.bool("mla_use_output_gate", default=False):
                width = latent.value_out_width
                gate = blocks.column("self_attn.g_proj", width, latent.hidden, latent.num_heads, Role.ATTENTION)
            made = latent_mixer(latent, *gate, bias=bias)
        elif kind == _LINEAR:
            made = kimi_delta(_kimi_delta(config))
        else:
            raise windows.unknown_kind(kind, (windows.FULL, _LINEAR))
        return replace(made, tensors=(*made.tensors, *extra))

    return per_layer(_kimi_kinds(config, config.num_layers()), mixer)


def _residual_maps(config: Config, *names: str) -> tuple[Tensor, ...]:
    """Kimi K3 mixes the outputs of blocks of layers: each place that reads them has a norm and a vector."""
    if not config.optional_int("attn_res_block_size"):
        return ()
    hidden = config.int(*blocks.HIDDEN)
    return tuple(
        tensor
        for name in names
        for tensor in (
            *blocks.norm(f"{name}_norm", hidden),
            *blocks.replicated(f"{name}_proj", 1, hidden, Role.OTHER),
        )
    )


def _kimi_feed(config: Config) -> Feed:
    """Routed experts; in Kimi K3 they work in a narrower space, which every rank maps into and out of."""
    hidden, inner = config.int(*blocks.HIDDEN), config.int("moe_intermediate_size", default=1024)
    num_experts = config.int("num_experts", "num_local_experts", default=256)
    narrow = config.optional_int("routed_expert_hidden_size", minimum=1)
    shared = inner * config.int("num_shared_experts", default=1, minimum=0)
    name = "block_sparse_moe"
    tensors = [
        *blocks.replicated(f"{name}.gate", num_experts, hidden, Role.ROUTER),
        # the published count of Kimi K3 has these biases in it, transformers' of Kimi Linear does not
        correction_bias(f"{name}.gate.e_score_correction_bias", num_experts, is_buffer=not narrow),
        *blocks.experts(narrow or hidden, inner, num_experts, prefix=f"{name}.experts.*", names=("w1", "w3", "w2")),
    ]
    if shared:
        tensors += blocks.mlp(hidden, shared, prefix=f"{name}.shared_experts", role=Role.SHARED_EXPERT)
    if narrow:
        tensors += blocks.replicated(f"{name}.routed_expert_down_proj", narrow, hidden, Role.MLP)
        tensors += blocks.replicated(f"{name}.routed_expert_up_proj", hidden, narrow, Role.MLP)
        if config.bool("latent_moe_use_norm", default=False):
            tensors += blocks.norm(f"{name}.routed_expert_norm", narrow)
    shape_of_experts = Mlp(
        intermediate=inner,
        num_experts=num_experts,
        experts_per_token=config.int("num_experts_per_token", "num_experts_per_tok", default=8),
        shared_intermediate=shared,
    )
    return Feed(tensors=tuple(tensors), mlp=shape_of_experts)


def _kimi_feeds(config: Config) -> Sequence[Feed]:
    step = config.int("moe_layer_freq", default=1)
    is_routed = listed_or(1)
    flags = [is_routed(config, index) and index % step == 0 for index in range(config.num_layers())]
    return per_layer(flags, lambda flag: _kimi_feed(config) if flag else Decoder().dense_feed(config))


KIMI_LINEAR = Decoder(
    mixers=_kimi_mixers,
    feeds=_kimi_feeds,
    frame=Frame(extra=lambda config: _residual_maps(config, "model.output_attn_res")),
)
