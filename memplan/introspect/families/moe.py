"""Ordinary decoders with routed experts, one line of knobs each.

Source: the modelling code, configuration defaults and checkpoint names (`conversion_mapping`) of transformers 5.23; for
DeepSeekMoE, Arctic, Grok-1, Bailing/Ling, Hunyuan and MiniCPM-MoE the published code as vLLM reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families import dense, mtp
from memplan.introspect.families.decoder import Decoder, Frame, Routed, shape
from memplan.introspect.families.dense import lettered, sinks
from memplan.introspect.stack import Width, count, key
from memplan.introspect.windows import first_full, last_full, typed

_W123 = ("w1", "w3", "w2")
_QKV_OUT = "attention_bias"


def after_dense(config: Config, index: int) -> bool:
    """The first `first_k_dense_replace` layers are dense; of the rest every `moe_layer_freq`-th is routed."""
    step = config.get("moe_layer_freq")
    if isinstance(step, (list, tuple)):
        flags = config.ints("moe_layer_freq")
        if index >= len(flags):
            raise UnsupportedModel(f"config key `moe_layer_freq` names {len(flags)} layers; there are more")
        return bool(flags[index])
    first = config.int("first_k_dense_replace", default=0, minimum=0)
    return index >= first and index % config.int("moe_layer_freq", default=1) == 0


def listed_or(first_dense: int) -> Callable[[Config, int], bool]:
    """`mlp_layer_types` says which layers are `sparse`; without the list, all but the first few."""

    def is_routed(config: Config, index: int) -> bool:
        if not config.has("mlp_layer_types"):
            return index >= config.int("first_k_dense_replace", "num_dense_layers", default=first_dense, minimum=0)
        kinds = config.strs("mlp_layer_types")
        if index >= len(kinds):
            raise UnsupportedModel(f"config key `mlp_layer_types` names {len(kinds)} layers; there are more")
        return kinds[index] == "sparse"

    return is_routed


def every_step(config: Config, index: int) -> bool:
    """Qwen: every `decoder_sparse_step`-th layer is routed, but for those in `mlp_only_layers`."""
    step = config.int("decoder_sparse_step", default=1)
    return index not in config.ints("mlp_only_layers", default=()) and (index + 1) % step == 0


def shared_of(number: str, *, default: int = 0, width: Width | None = None) -> Width:
    """Shared experts: `number` of them, each as wide as a routed one, stored as one MLP."""
    read = width or key("moe_intermediate_size", "intermediate_size")
    return lambda config: config.int(number, default=default, minimum=0) * read(config)


MIXTRAL = Decoder(
    heads=shape(kv=8),
    window=windows.always(),
    routed=Routed(prefix="block_sparse_moe.experts.*", names=_W123, router="block_sparse_moe.gate"),
)
PHIMOE = replace(
    MIXTRAL,
    window=windows.full,
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    frame=Frame(norm_bias=True, head_bias="lm_head_bias"),
)
MINIMAX_M2 = replace(
    MIXTRAL,
    qk_norm=("use_qk_norm", True),
    qk_norm_full=True,
    window=windows.full,
    routed=Routed(
        prefix="block_sparse_moe.experts.*",
        names=_W123,
        router="block_sparse_moe.gate",
        correction="block_sparse_moe.e_score_correction_bias",
    ),
)

QWEN2_MOE = Decoder(
    heads=shape(kv=16),
    qkv_bias=("qkv_bias", True),
    window=windows.qwen2,
    routed=Routed(
        is_routed=every_step,
        intermediate=key("moe_intermediate_size", default=1408),
        shared=key("shared_expert_intermediate_size", default=5632),
        shared_prefix="mlp.shared_expert",
        shared_gate="mlp.shared_expert_gate",
    ),
)
QWEN3_MOE = Decoder(
    heads=shape(kv=4),
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    qk_norm=True,
    window=windows.switched,
    routed=Routed(is_routed=every_step, intermediate=key("moe_intermediate_size", default=768)),
)
QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    routed=Routed(
        is_routed=every_step,
        intermediate=key("moe_intermediate_size", default=768),
        prefix="mlp.experts",
        names=("gate_up_proj", "down_proj"),
        suffix="",
    ),
)

DEEPSEEK = Decoder(
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    routed=Routed(is_routed=after_dense, shared=shared_of("n_shared_experts")),
)
DOTS1 = Decoder(
    heads=shape(kv=32),
    qkv_bias=_QKV_OUT,
    qk_norm=True,
    window=typed(lambda config, num_layers: _dots_types(config, num_layers), window=4096),
    routed=Routed(
        is_routed=after_dense,
        shared=shared_of("n_shared_experts"),
        correction="mlp.gate.e_score_correction_bias",
    ),
)
GLM4_MOE: Decoder = Decoder(
    heads=shape(kv=8),
    qkv_bias=_QKV_OUT,
    qk_norm="use_qk_norm",
    routed=Routed(
        is_routed=listed_or(1),
        shared=shared_of("n_shared_experts", default=1),
        correction="mlp.gate.e_score_correction_bias",
    ),
    frame=Frame(mtp=mtp.appended(lambda: GLM4_MOE)),
)
SOLAR_OPEN = Decoder(
    heads=shape(kv=8, dim=128),
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    routed=Routed(shared=shared_of("n_shared_experts", default=1), correction="mlp.gate.e_score_correction_bias"),
)
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
HY_V3 = Decoder(
    heads=shape(kv=8, dim=128),
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    qk_norm=True,
    mlp_bias="mlp_bias",
    routed=Routed(
        is_routed=listed_or(1),
        router="mlp.router.gate",
        shared=shared_of("num_shared_experts", default=1),
        shared_prefix="mlp.shared_mlp",
        correction="mlp.expert_bias",
    ),
)
ERNIE4_5_MOE = Decoder(
    heads=shape(kv=4),
    qkv_bias="use_bias",
    out_bias="use_bias",
    mlp_bias="use_bias",
    routed=Routed(
        num_experts=("moe_num_experts", "num_experts"),
        experts_per_token=("moe_k", "num_experts_per_tok"),
        is_routed=lambda config, index: _ernie_routed(config, index),
        shared=shared_of("moe_num_shared_experts", default=2),
        correction="mlp.moe_statics.e_score_correction_bias",
        correction_counts=True,
    ),
    frame=Frame(tied=True),
)
AFMOE = Decoder(
    heads=shape(kv=16, dim=128),
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
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

OLMOE = Decoder(
    heads=shape(kv=16), qkv_bias=_QKV_OUT, out_bias=_QKV_OUT, qk_norm=True, qk_norm_full=True, routed=Routed()
)
FLEX_OLMO = replace(OLMOE, heads=shape(kv=32), norms=("post_attention_layernorm", "post_feedforward_layernorm"))

GRANITEMOE = Decoder(
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    routed=Routed(
        prefix="block_sparse_moe",
        names=("input_linear", "output_linear"),
        router="block_sparse_moe.router.layer",
        shared=count("shared_intermediate_size"),
        shared_prefix="shared_mlp",
        shared_names=("input_linear", "output_linear"),
    ),
)
GRANITEMOE_SWA = replace(GRANITEMOE, attention_extra=sinks, window=typed(first_full(4), window=128))
ARIA = replace(
    dense.LLAMA,
    routed=Routed(
        num_experts=("moe_num_experts",),
        experts_per_token=("moe_topk",),
        intermediate=key("intermediate_size"),
        prefix="mlp.experts",
        names=("fc1", "fc2"),
        router="mlp.router",
        shared=shared_of("moe_num_shared_experts", default=2, width=key("intermediate_size")),
    ),
)
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
MINICPM_MOE = replace(dense.MINICPM, routed=Routed(names=_W123, intermediate=key("intermediate_size")))
GROK = Decoder(
    attention_prefix="attn",
    routed=Routed(prefix="moe_block.experts.*", names=("linear", "linear_v", "linear_1"), router="moe_block.gate"),
    norms=("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm"),
    frame=Frame(tied=True),
)
BAILING: Decoder = Decoder(
    attention_prefix="attention",
    attention_names=("query_key_value", "dense"),
    qkv_bias=lambda config: any(config.bool(name, default=False) for name in ("use_bias", "use_qkv_bias")),
    out_bias="use_bias",
    qk_norm="use_qk_norm",
    qk_norm_names=("query_layernorm", "key_layernorm"),
    routed=Routed(
        is_routed=after_dense,
        shared=lambda config: _bailing_shared(config),
        correction="mlp.gate.expert_bias",
    ),
    frame=Frame(embedding="model.word_embeddings", mtp=mtp.appended(lambda: BAILING, mtp.BAILING)),
)
HUNYUAN_MOE = Decoder(
    heads=lambda config: blocks.read_heads(config, head_dim=config.optional_int("attention_head_dim", minimum=1)),
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    qk_norm=("use_qk_norm", True),
    qk_norm_names=("query_layernorm", "key_layernorm"),
    routed=Routed(
        num_experts=("num_experts",),
        experts_per_token=("moe_topk", "num_experts_per_tok"),
        intermediate=lambda config: _uniform(config, "moe_intermediate_size", "intermediate_size"),
        router="mlp.gate.wg",
        router_dtype=DType.F32,
        shared=lambda config: _hunyuan_shared(config),
        shared_prefix="mlp.shared_mlp",
    ),
)

# Families of 2026, in transformers 5.23 and vLLM 0.33.
MELLUM = replace(
    QWEN3_MOE, heads=shape(kv=4, dim=128), window=typed(window=1024), routed=Routed(is_routed=listed_or(0))
)
FLINT = Decoder(
    heads=shape(kv=4, dim=128),
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    qk_norm=True,
    attention_extra=sinks,
    window=typed(lambda config, num_layers: _flint_types(config, num_layers), window=513),
    routed=Routed(
        is_routed=lambda config, index: _flint_routed(config, index),
        shared=key("shared_expert_intermediate_size", default=1024),
        shared_prefix="mlp.shared_expert",
    ),
)
KOLIBRI = Decoder(
    heads=shape(kv=4, dim=128),
    qk_norm=True,
    window=typed(last_full(5), window=513),
    routed=Routed(
        shared=key("shared_expert_intermediate_size", default=512), correction="mlp.gate.e_score_correction_bias"
    ),
    norms=("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"),
)


def minicpm(config: Config, name: str) -> ModelSpec:
    """MiniCPM 1, 4 and MoE: one `model_type`, told apart by whether there are experts."""
    style = MINICPM_MOE if config.int("num_experts", default=0, minimum=0) else dense.MINICPM
    return style(config, name)


def _output_gate(heads: Heads, name: str = "self_attn.gate_proj") -> tuple[Tensor, ...]:
    """A gate over the output of attention, as wide as the queries."""
    return blocks.column(name, heads.query_width, heads.hidden, heads.num_heads, Role.ATTENTION)


def _dots_types(config: Config, num_layers: int) -> tuple[str, ...]:
    first = config.int("max_window_layers", default=62, minimum=0)
    return tuple(windows.SLIDING if index >= first else windows.FULL for index in range(num_layers))


def _cohere_types(config: Config, num_layers: int) -> tuple[str, ...]:
    """The dense layers at the start follow a pattern of their own."""
    first = min(config.int("first_k_dense_replace", default=0, minimum=0), num_layers)
    dense_step = config.int("prefix_dense_sliding_window_pattern", default=1)
    step = config.int("sliding_window_pattern", default=4)
    steps = [(index, dense_step) for index in range(first)] + [(index, step) for index in range(num_layers - first)]
    return tuple(windows.SLIDING if (index + 1) % every else windows.FULL for index, every in steps)


def _flint_types(config: Config, num_layers: int) -> tuple[str, ...]:
    """Full attention in the first two layers, every fourth and the last."""
    full = {0, 1, num_layers - 1}
    return tuple(windows.FULL if index in full or index % 4 == 1 else windows.SLIDING for index in range(num_layers))


def _flint_routed(config: Config, index: int) -> bool:
    step = config.int("decoder_sparse_step", default=1)
    return index not in config.ints("mlp_only_layers", default=(0, 1)) and (index + 1) % step == 0


def _ernie_routed(config: Config, index: int) -> bool:
    first = config.int("moe_layer_start_index", default=1, minimum=0)
    last = config.int("moe_layer_end_index", default=-1, minimum=-1)
    step = config.int("moe_layer_interval", default=1)
    return (index + 1) % step == 0 and index >= first and (last == -1 or index <= last)


def _bailing_shared(config: Config) -> int:
    width = config.int("moe_shared_expert_intermediate_size", "moe_intermediate_size")
    return width * config.int("num_shared_experts", default=0, minimum=0)


def _hunyuan_shared(config: Config) -> int:
    number = 1
    if config.has("num_shared_expert"):
        number = _uniform(config, "num_shared_expert") if config.get("use_mixed_mlp_moe") else 0
    return number * config.int("intermediate_size")


def _uniform(config: Config, *keys: str) -> int:
    """A number that some configs give once for every layer: the same in all of them.

    Raises: UnsupportedModel when the layers differ.
    """
    name = next((name for name in keys if config.has(name)), keys[0])
    if not isinstance(config.get(name), (list, tuple)):
        return config.int(*keys)
    values = set(config.ints(name))
    if len(values) != 1 or min(values) < 1:
        raise UnsupportedModel(f"config key `{name}` differs from layer to layer, which is not understood")
    return values.pop()
