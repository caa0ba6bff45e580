"""Decoders with routed experts, some of whose layers keep only a window.

Source: the modelling code, configuration defaults and checkpoint names of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families import dense, moe
from memplan.introspect.families.decoder import Decoder, Routed, shape
from memplan.introspect.families.dense import lettered, sinks
from memplan.introspect.families.routing import after_dense, listed_or, shared_of
from memplan.introspect.stack import Mixer, key, per_layer
from memplan.introspect.windows import FULL, SLIDING, first_full, last_full, typed
from memplan.records import dataclass, replace

_BIAS = "attention_bias"
_CORRECTION = "mlp.gate.e_score_correction_bias"

DOTS1 = Decoder(
    heads=shape(kv=32),
    qkv_bias=_BIAS,
    out_bias=_BIAS,
    qk_norm=True,
    window=typed(lambda config, num_layers: _dots_types(config, num_layers), window=4096),
    routed=Routed(
        is_routed=after_dense,
        shared=shared_of("n_shared_experts"),
        correction="mlp.gate.e_score_correction_bias",
    ),
)


def _dots_types(config: Config, num_layers: int) -> tuple[str, ...]:
    first = config.int("max_window_layers", default=62, minimum=0)
    return tuple(windows.SLIDING if index >= first else windows.FULL for index in range(num_layers))


EXAONE_MOE = Decoder(
    heads=shape(kv=32),
    qk_norm=True,
    window=typed(lettered, window=4096),
    routed=Routed(
        is_routed=listed_or(1),
        shared=shared_of("num_shared_experts", default=1),
        correction="mlp.gate.e_score_correction_bias",
    ),
)


AFMOE = Decoder(
    heads=shape(kv=16, dim=128),
    qkv_bias=_BIAS,
    out_bias=_BIAS,
    qk_norm=True,
    attention_extra=lambda config, heads: _output_gate(heads),
    window=typed(last_full(4, "global_attn_every_n_layers"), window=1024),
    routed=Routed(
        is_routed=lambda config, index: index >= config.int("num_dense_layers", default=1, minimum=0),
        router="mlp.router.gate",
        shared=shared_of("num_shared_experts", default=2),
        correction="mlp.expert_bias",
        correction_counts=True,
    ),
    norms=("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"),
)


def _output_gate(heads: Heads, name: str = "self_attn.gate_proj") -> tuple[Tensor, ...]:
    """A gate over the output of attention, as wide as the queries."""
    return blocks.column(name, heads.query_width, heads.hidden, heads.num_heads, Role.ATTENTION)


GRANITEMOE_SWA = replace(moe.GRANITEMOE, attention_extra=sinks, window=typed(first_full(4), window=128))


COHERE2_MOE = replace(
    dense.COHERE2,
    heads=shape(dim=128),
    window=typed(lambda config, num_layers: _cohere_types(config, num_layers), window=4096),
    intermediate=key("prefix_dense_intermediate_size", "intermediate_size"),
    routed=Routed(
        is_routed=listed_or(0),
        intermediate=key("intermediate_size"),
        shared=shared_of("num_shared_experts", width=key("intermediate_size")),
    ),
)


def _cohere_types(config: Config, num_layers: int) -> tuple[str, ...]:
    """The dense layers at the start follow a pattern of their own."""
    first = min(config.int("first_k_dense_replace", default=0, minimum=0), num_layers)
    dense_step = config.int("prefix_dense_sliding_window_pattern", default=1)
    step = config.int("sliding_window_pattern", default=4)
    steps = [(index, dense_step) for index in range(first)] + [(index, step) for index in range(num_layers - first)]
    return tuple(windows.SLIDING if (index + 1) % every else windows.FULL for index, every in steps)


GPT_OSS = Decoder(
    heads=shape(kv=8, dim=64),
    qkv_bias=("attention_bias", True),
    out_bias=("attention_bias", True),
    attention_extra=sinks,
    window=typed(last_full(2), window=128),
    routed=Routed(
        experts_per_token=("num_experts_per_tok", "experts_per_token"),
        intermediate=key("intermediate_size"),
        prefix="mlp.experts",
        names=("gate_up_proj", "down_proj"),
        suffix="",
        bias=True,
        router="mlp.router",
        router_bias=True,
    ),
)


# Families of 2026, in transformers 5.23 and vLLM 0.33.
MELLUM = replace(
    moe.QWEN3_MOE, heads=shape(kv=4, dim=128), window=typed(window=1024), routed=Routed(is_routed=listed_or(0))
)


FLINT = Decoder(
    heads=shape(kv=4, dim=128),
    qkv_bias=_BIAS,
    out_bias=_BIAS,
    qk_norm=True,
    attention_extra=sinks,
    window=typed(lambda config, num_layers: _flint_types(config, num_layers), window=513),
    routed=Routed(
        is_routed=lambda config, index: _flint_routed(config, index),
        shared=key("shared_expert_intermediate_size", default=1024),
        shared_prefix="mlp.shared_expert",
    ),
)


def _flint_types(config: Config, num_layers: int) -> tuple[str, ...]:
    """Full attention in the first two layers, every fourth and the last."""
    full = {0, 1, num_layers - 1}
    return tuple(windows.FULL if index in full or index % 4 == 1 else windows.SLIDING for index in range(num_layers))


def _flint_routed(config: Config, index: int) -> bool:
    step = config.int("decoder_sparse_step", default=1)
    return index not in config.ints("mlp_only_layers", default=(0, 1)) and (index + 1) % step == 0


KOLIBRI = Decoder(
    heads=shape(kv=4, dim=128),
    qk_norm=True,
    window=typed(last_full(5), window=513),
    routed=Routed(
        shared=key("shared_expert_intermediate_size", default=512), correction="mlp.gate.e_score_correction_bias"
    ),
    norms=("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"),
)


# Laguna: the number of query heads may differ from layer to layer.
@dataclass(frozen=True, slots=True)
class _LagunaLayer:
    kind: str
    num_heads: int


def _laguna_mixers(config: Config) -> Sequence[Mixer]:
    num_layers, base = config.num_layers(), blocks.read_heads(config, default_kv=8, head_dim=128)
    numbers: Sequence[int] = (base.num_heads,) * num_layers
    if config.has("num_attention_heads_per_layer"):
        numbers = windows.flags(config, "num_attention_heads_per_layer", num_layers)
    if min(numbers) < 1:
        raise UnsupportedModel("config key `num_attention_heads_per_layer` must have positive numbers")
    kinds = windows.layer_types(config, num_layers)
    per_head = config.get("gating") in (None, True, "per-head")
    window = config.int("sliding_window", default=512)
    style = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm=True)

    def mixer(layer: _LagunaLayer) -> Mixer:
        heads = replace(base, num_heads=layer.num_heads)
        made = style.attention(config, heads, heads.window(window) if layer.kind == SLIDING else heads.full())
        width = heads.num_heads if per_head else heads.query_width
        gate = blocks.column("self_attn.g_proj", width, heads.hidden, heads.num_heads, Role.ATTENTION)
        return replace(made, tensors=(*made.tensors, *gate))

    return per_layer([_LagunaLayer(kind, number) for kind, number in zip(kinds, numbers, strict=True)], mixer)


LAGUNA = Decoder(
    mixers=_laguna_mixers,
    routed=Routed(
        is_routed=listed_or(1),
        shared=key("shared_expert_intermediate_size", default=512),
        correction=_CORRECTION,
        correction_counts=True,
    ),
)


def _beam_types(config: Config, num_layers: int) -> Sequence[str]:
    return (*last_full(6)(config, num_layers)[:-1], FULL)


def _beam_gate(config: Config, heads: Heads) -> tuple[Tensor, ...]:
    """A gate over attention's output, with a bias for every head."""
    number = heads.num_heads
    return (
        blocks.vector("self_attn.gate_bias", number, Role.ATTENTION, units=number),
        *blocks.column("self_attn.gate_proj", heads.query_width, heads.hidden, number, Role.ATTENTION),
    )


BEAM = Decoder(
    heads=shape(kv=8, dim=128),
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    qk_norm=True,
    attention_extra=_beam_gate,
    window=typed(_beam_types, window=512),
    routed=Routed(is_routed=listed_or(3), correction=_CORRECTION),
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
)
