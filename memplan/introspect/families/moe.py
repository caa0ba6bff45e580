"""Ordinary decoders with routed experts, one line of knobs each.

Source: the modelling code, configuration defaults and checkpoint names (`conversion_mapping`) of transformers 5.23; for
DeepSeekMoE, Arctic, Grok-1, Bailing/Ling, Hunyuan and MiniCPM-MoE the published code as vLLM reads it.
"""

from __future__ import annotations

from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, windows
from memplan.introspect.config import Config
from memplan.introspect.families import dense, mtp
from memplan.introspect.families.decoder import Decoder, Frame, Routed, shape
from memplan.introspect.families.routing import after_dense, every_step, listed_or, shared_of
from memplan.introspect.stack import count, key
from memplan.records import replace

_W123 = ("w1", "w3", "w2")
_QKV_OUT = "attention_bias"
_INNER = key("intermediate_size")
_PER_LAYER = ("num_experts", "moe_topk", "moe_intermediate_size", "num_shared_expert")


MIXTRAL = Decoder(
    heads=shape(kv=8),
    window=windows.always(),
    routed=Routed(
        intermediate=_INNER, prefix="block_sparse_moe.experts.*", names=_W123, router="block_sparse_moe.gate"
    ),
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
    heads=shape(kv=8, dim=128),
    qk_norm=("use_qk_norm", True),
    qk_norm_full=True,
    window=windows.full,
    routed=Routed(
        intermediate=_INNER,
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
    routed=Routed(shared=shared_of("n_shared_experts", default=1), correction="mlp.gate.e_score_correction_bias"),
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
        shared_bias="mlp_bias",
        correction="mlp.expert_bias",
    ),
)
ERNIE4_5_MOE: Decoder = Decoder(
    heads=shape(kv=4),
    qkv_bias="use_bias",
    out_bias="use_bias",
    mlp_bias="use_bias",
    routed=Routed(
        num_experts=("moe_num_experts", "num_experts"),
        experts_per_token=("moe_k", "num_experts_per_tok"),
        is_routed=lambda config, index: _ernie_routed(config, index),
        shared=shared_of("moe_num_shared_experts", default=2),
        shared_bias="use_bias",
        correction="mlp.moe_statics.e_score_correction_bias",
        correction_counts=True,
    ),
    frame=Frame(tied=True, head_bias="use_bias", mtp=mtp.ernie(lambda: ERNIE4_5_MOE)),
)

OLMOE = Decoder(
    heads=shape(kv=16),
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    qk_norm=True,
    qk_norm_full=True,
    routed=Routed(intermediate=_INNER),
)
FLEX_OLMO = replace(OLMOE, heads=shape(kv=32), norms=("post_attention_layernorm", "post_feedforward_layernorm"))

GRANITEMOE = Decoder(
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    routed=Routed(
        intermediate=_INNER,
        prefix="block_sparse_moe",
        names=("input_linear", "output_linear"),
        router="block_sparse_moe.router.layer",
        shared=count("shared_intermediate_size"),
        shared_prefix="shared_mlp",
        shared_names=("input_linear", "output_linear"),
    ),
)
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
        shared_bias="mlp_bias",
    ),
)
MINICPM_MOE = replace(dense.MINICPM, routed=Routed(names=_W123, intermediate=key("intermediate_size")))
GROK = Decoder(
    attention_prefix="attn",
    routed=Routed(
        intermediate=_INNER,
        prefix="moe_block.experts.*",
        names=("linear", "linear_v", "linear_1"),
        router="moe_block.gate",
    ),
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
_HUNYUAN_MOE = Decoder(
    heads=lambda config: blocks.read_heads(config, head_dim=config.optional_int("attention_head_dim", minimum=1)),
    qkv_bias=_QKV_OUT,
    out_bias=_QKV_OUT,
    qk_norm=("use_qk_norm", True),
    qk_norm_names=("query_layernorm", "key_layernorm"),
    routed=Routed(
        num_experts=("num_experts",),
        experts_per_token=("moe_topk", "num_experts_per_tok"),
        intermediate=key("moe_intermediate_size", "intermediate_size"),
        router="mlp.gate.wg",
        router_dtype=DType.F32,
        shared=lambda config: _hunyuan_shared(config),
        shared_prefix="mlp.shared_mlp",
    ),
)


def minicpm(config: Config, name: str) -> ModelSpec:
    """MiniCPM 1, 4 and MoE: one `model_type`, told apart by whether there are experts."""
    style = MINICPM_MOE if config.int("num_experts", default=0, minimum=0) else dense.MINICPM
    return style(config, name)


def hunyuan_moe(config: Config, name: str) -> ModelSpec:
    """Hunyuan with experts, whose config may give the numbers of its experts layer by layer.

    Raises: UnsupportedModel when the layers differ.
    """
    listed = {name: _uniform(config, name) for name in _PER_LAYER if isinstance(config.get(name), (list, tuple))}
    return _HUNYUAN_MOE(config.having(**listed), name)


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
        number = config.int("num_shared_expert", minimum=0) if config.get("use_mixed_mlp_moe") else 0
    return number * config.int("intermediate_size")


def _uniform(config: Config, name: str) -> int:
    values = set(config.ints(name))
    if len(values) != 1:
        raise UnsupportedModel(f"config key `{name}` differs from layer to layer, which is not understood")
    return values.pop()
