"""Ordinary dense decoders, one line of knobs each: grouped attention and an MLP in every layer.

Source: the modelling code and configuration defaults of transformers 5.23; for families that publish their own code
(Baichuan, InternLM, XVERSE, Orion, MiMo, EXAONE 3), that code as vLLM 0.33.0 reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.attention import Cache
from memplan.domain.model import Mlp
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families import mtp
from memplan.introspect.families.decoder import Decoder, Frame, shape
from memplan.introspect.stack import Feed, Mixer, is_set
from memplan.introspect.windows import first_full, last_full, typed
from memplan.records import replace

_BIAS = ("attention_bias", True)
_SANDWICH = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_POST = ("post_attention_layernorm", "post_feedforward_layernorm")
_TIED = Frame(tied=True)
_LAYER_NORM = Frame(norm_bias=True)

LLAMA = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
BAICHUAN = Decoder(attention_names=("W_pack", "o_proj"))
YI = replace(LLAMA, norms=("ln1", "ln2"))
INTERNLM = Decoder(qkv_bias=("bias", True), out_bias=("bias", True))
INTERNLM3 = Decoder(heads=shape(kv=2), qkv_bias="qkv_bias", out_bias="bias", mlp_bias="bias")
INTERNLM2 = Decoder(
    qkv_bias="bias",
    out_bias="bias",
    attention_prefix="attention",
    attention_names=("wqkv", "wo"),
    mlp_prefix="feed_forward",
    mlp_names=("w1", "w3", "w2"),
    norms=("attention_norm", "ffn_norm"),
    frame=Frame(embedding="model.tok_embeddings", lm_head="output"),
)
IQUEST = replace(LLAMA, heads=shape(kv=8))
ORION = Decoder(frame=_LAYER_NORM)
XVERSE = Decoder()
MINICPM = Decoder(frame=_TIED)
MISTRAL = Decoder(heads=shape(kv=8), window=windows.always(4096))
MINISTRAL = Decoder(heads=shape(kv=8), window=typed(windows.all_windowed, window=4096))
MINISTRAL3 = Decoder(heads=shape(kv=8, dim=128), window=windows.always())
ARCEE = replace(LLAMA, mlp_names=("up_proj", "down_proj"), gated=False)
GRANITE = LLAMA
SEED_OSS = Decoder(heads=shape(kv=8, dim=128), qkv_bias=_BIAS, out_bias="attention_out_bias", mlp_bias="mlp_bias")
HELIUM = Decoder(heads=shape(kv=20, dim=128), qkv_bias="attention_bias", mlp_bias="mlp_bias")
CWM = Decoder(heads=shape(kv=8, dim=128), mlp_bias="mlp_bias", window=typed(first_full(4), window=8192))
ERNIE4_5 = Decoder(
    heads=shape(kv=2, dim=128), qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", frame=_TIED
)
HYPERCLOVAX = replace(
    LLAMA,
    layer_norms=lambda config: blocks.norms(
        ("input_layernorm", "post_attention_layernorm", "post_norm1", "post_norm2")
        if is_set(config, ("use_post_norm", True))
        else ("input_layernorm", "post_attention_layernorm"),
        config.int(*blocks.HIDDEN),
    ),
)
HUNYUAN = replace(LLAMA, qk_norm=("use_qk_norm", True), qk_norm_names=("query_layernorm", "key_layernorm"))

QWEN2 = Decoder(heads=shape(kv=32), qkv_bias=True, window=windows.qwen2)
QWEN3 = Decoder(
    heads=shape(kv=32, dim=128),
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    qk_norm=True,
    window=windows.qwen2,
)
MIMO: Decoder = Decoder(
    qkv_bias="attention_bias",
    window=windows.qwen2,
    frame=Frame(mtp=mtp.numbered(lambda: MIMO, mtp.MIMO, prefix="model.mtp_layers.")),
)

GEMMA = Decoder(heads=shape(kv=16, dim=256), qkv_bias="attention_bias", out_bias="attention_bias", frame=_TIED)
GEMMA2 = replace(GEMMA, heads=shape(kv=4, dim=256), norms=_SANDWICH, window=typed(last_full(2), window=4096))
_GEMMA3_WINDOW = typed(last_full(6, "sliding_window_pattern", "_sliding_window_pattern"), window=4096)


def _gemma3_window(config: Config, heads: Heads, num_layers: int) -> Sequence[Cache]:
    """An embedding model sees as many tokens ahead as behind, so half a window each way."""
    if config.bool("use_bidirectional_attention", default=False):
        config = config.having(sliding_window=config.int("sliding_window", default=4096) // 2 + 1)
    return _GEMMA3_WINDOW(config, heads, num_layers)


GEMMA3 = replace(GEMMA2, qk_norm=True, window=_gemma3_window)
VAULTGEMMA = replace(GEMMA2, norms=("input_layernorm", "pre_feedforward_layernorm"))

GLM = Decoder(heads=shape(kv=2, dim=128), qkv_bias=_BIAS, mlp_names=("gate_up_proj", "down_proj"))
GLM4 = replace(
    GLM,
    norms=("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"),
)

COHERE = Decoder(
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    qk_norm="use_qk_norm",
    qk_norm_full=True,
    norms=("input_layernorm",),
    frame=_TIED,
)
COHERE2 = replace(COHERE, qk_norm=False, window=typed(last_full(4, "sliding_window_pattern"), window=4096))

OLMO = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", norms=(), frame=Frame(final_norm=""))
OLMO2 = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm=True, qk_norm_full=True, norms=_POST)
OLMO3 = replace(OLMO2, window=typed(last_full(4), window=4096))

PHI3 = Decoder(attention_names=("qkv_proj", "o_proj"), mlp_names=("gate_up_proj", "down_proj"), window=windows.always())
STARCODER2 = Decoder(
    heads=shape(kv=2),
    qkv_bias=("use_bias", True),
    out_bias=("use_bias", True),
    mlp_bias=("use_bias", True),
    mlp_names=("c_fc", "c_proj"),
    gated=False,
    window=windows.always(),
    frame=Frame(norm_bias=True, tied=True),
)
NEMOTRON = Decoder(
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    mlp_bias="mlp_bias",
    mlp_names=("up_proj", "down_proj"),
    gated=False,
    frame=_LAYER_NORM,
)
JAIS2 = Decoder(
    qkv_bias=_BIAS,
    out_bias=_BIAS,
    mlp_bias=("mlp_bias", True),
    mlp_names=("up_proj", "down_proj"),
    gated=False,
    frame=_LAYER_NORM,
)
NANOCHAT = Decoder(
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    mlp_names=("fc1", "fc2"),
    gated=False,
    norms=(),
    frame=Frame(final_norm=""),
)
EXAONE = Decoder(
    attention_prefix="attn.attention",
    attention_names=("q_proj", "k_proj", "v_proj", "out_proj"),
    mlp_names=("c_fc_0", "c_fc_1", "c_proj"),
    norms=("ln_1", "ln_2"),
    frame=Frame(layers="transformer.h.", embedding="transformer.wte", final_norm="transformer.ln_f"),
)


def lettered(config: Config, num_layers: int) -> Sequence[str]:
    """EXAONE's pattern: a period, or letters such as `LLLG` that are repeated; null means no windows at all."""
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str):
        if not pattern or set(pattern) - {"L", "G"} or len(pattern) > num_layers:
            raise UnsupportedModel(f"config key `sliding_window_pattern` must be letters L and G: `{pattern[:40]}`")
        kinds = {"L": windows.SLIDING, "G": windows.FULL}
        return [
            windows.FULL if index == num_layers - 1 else kinds[pattern[index % len(pattern)]]
            for index in range(num_layers)
        ]
    return last_full(4, "sliding_window_pattern")(config, num_layers)


EXAONE4 = Decoder(heads=shape(kv=32), qk_norm=True, norms=_POST, window=typed(lettered, window=4096))


def _rope_free(config: Config, num_layers: int) -> Sequence[str]:
    """SmolLM3: layers without rotary positions are windowed, when windows are on."""
    if not config.bool("use_sliding_window", default=False):
        return (windows.FULL,) * num_layers
    every = config.int("no_rope_layer_interval", default=4)
    rotary = config.ints("no_rope_layers", default=[int((index + 1) % every != 0) for index in range(num_layers)])
    if len(rotary) < num_layers:
        raise UnsupportedModel(f"config key `no_rope_layers` names {len(rotary)} layers of {num_layers}")
    return tuple(windows.FULL if has_rope else windows.SLIDING for has_rope in rotary[:num_layers])


SMOLLM3 = replace(LLAMA, heads=shape(kv=4), window=typed(_rope_free), frame=_TIED)


def sinks(config: Config, heads: Heads) -> tuple[Tensor, ...]:
    """One learned sink for every query head."""
    return (blocks.vector("self_attn.sinks", heads.num_heads, Role.ATTENTION, units=heads.num_heads),)


GRANITE_SWA = replace(
    LLAMA, heads=shape(kv=4), attention_extra=sinks, window=typed(first_full(4), window=128), frame=_TIED
)


def _apertus_norms(config: Config) -> tuple[Tensor, ...]:
    """Two norms, and the two learned scalars of the xIELU activation."""
    return (
        *blocks.norms(("attention_layernorm", "feedforward_layernorm"), config.int(*blocks.HIDDEN)),
        blocks.vector("mlp.act_fn.alpha_p", 1, Role.MLP),
        blocks.vector("mlp.act_fn.alpha_n", 1, Role.MLP),
    )


APERTUS = Decoder(
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    qk_norm=True,
    mlp_names=("up_proj", "down_proj"),
    gated=False,
    layer_norms=_apertus_norms,
)


def _stablelm_norms(config: Config) -> tuple[Tensor, ...]:
    """A parallel residual needs one norm only."""
    parallel = config.bool("use_parallel_residual", default=False)
    names = ("input_layernorm",) if parallel else ("input_layernorm", "post_attention_layernorm")
    return blocks.norms(names, config.int(*blocks.HIDDEN), bias=True)


def _stablelm_head_norms(config: Config, heads: Heads) -> tuple[Tensor, ...]:
    """One norm for every single head."""
    if not config.bool("qk_layernorm", default=False):
        return ()
    return (
        Tensor(
            name="self_attn.q_layernorm.norms.*.weight",
            shape=(heads.key_width,),
            role=Role.NORM,
            count=heads.num_heads,
        ),
        Tensor(
            name="self_attn.k_layernorm.norms.*.weight",
            shape=(heads.key_width,),
            role=Role.NORM,
            count=heads.num_kv_heads,
        ),
    )


STABLELM = Decoder(
    heads=shape(kv=32),
    qkv_bias="use_qkv_bias",
    attention_extra=_stablelm_head_norms,
    layer_norms=_stablelm_norms,
    frame=_LAYER_NORM,
)


def _bitnet_norms(config: Config) -> tuple[Tensor, ...]:
    hidden = config.int(*blocks.HIDDEN)
    return (
        *blocks.norms(("input_layernorm", "post_attention_layernorm", "self_attn.attn_sub_norm"), hidden),
        *blocks.norm("mlp.ffn_sub_norm", config.int("intermediate_size")),
    )


BITNET = Decoder(heads=shape(kv=5), qkv_bias="attention_bias", out_bias="attention_bias", layer_norms=_bitnet_norms)


def _lambdas(config: Config, heads: Heads) -> tuple[Tensor, ...]:
    """The vectors that weigh the two attention maps of a differential transformer."""
    names = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
    return tuple(blocks.vector(f"self_attn.{name}", heads.key_width, Role.ATTENTION) for name in names)


DIFFLLAMA = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", attention_extra=_lambdas)


# Doge: masks that follow the values, and learned weights of the residual stream.
def _doge_mask(config: Config, heads: Heads) -> tuple[Tensor, ...]:
    number, width = heads.num_kv_heads, heads.num_kv_heads * heads.value_width
    has_bias = config.bool("attention_bias", default=False)
    return (
        blocks.vector("self_attn.A", number, Role.ATTENTION, units=number),
        *blocks.column("self_attn.dt_proj", number, width, number, Role.ATTENTION, bias=has_bias),
    )


def _doge_norms(config: Config) -> tuple[Tensor, ...]:
    if config.bool("is_moe", default=False):
        raise UnsupportedModel("Doge's cross-domain experts are not understood", hint="try --introspect torch")
    hidden = config.int(*blocks.HIDDEN)
    return (
        *blocks.norms(("input_layernorm", "post_attention_layernorm"), hidden),
        blocks.vector("input_residual", hidden, Role.OTHER),
        blocks.vector("post_attention_residual", hidden, Role.OTHER),
    )


DOGE = Decoder(
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    qk_norm=True,
    attention_extra=_doge_mask,
    mlp_bias="mlp_bias",
    window=windows.always(),
    layer_norms=_doge_norms,
)


def _telechat_attention(config: Config) -> Sequence[Mixer]:
    """TeleChat 2: keys and values are one matrix, interleaved head by head."""
    heads = blocks.read_heads(config)
    width, role = heads.num_kv_heads * heads.key_width, Role.ATTENTION
    tensors = (
        *blocks.column("self_attention.query", heads.query_width, heads.hidden, heads.num_heads, role),
        *blocks.kv_column("self_attention.key_value", 2 * width, heads.hidden, heads.num_kv_heads, role),
        *blocks.row("self_attention.dense", heads.hidden, heads.query_width, heads.num_heads, role, bias=True),
    )
    mixer = Mixer(tensors=tensors, caches=(heads.full(),), query_width=heads.query_width, num_heads=heads.num_heads)
    return (mixer,) * config.num_layers()


def _telechat_feeds(config: Config) -> Sequence[Feed]:
    hidden, inner = config.int(*blocks.HIDDEN), config.int("ffn_hidden_size", "intermediate_size")
    tensors = (
        *blocks.column("mlp.gate_proj", inner, hidden, inner, Role.MLP),
        *blocks.column("mlp.up_proj", inner, hidden, inner, Role.MLP),
        *blocks.row("mlp.down_proj", hidden, inner, inner, Role.MLP, bias=True),
    )
    return (Feed(tensors=tensors, mlp=Mlp(intermediate=inner)),) * config.num_layers()


TELECHAT2 = Decoder(
    mixers=_telechat_attention,
    feeds=_telechat_feeds,
    frame=Frame(layers="transformer.h.", embedding="transformer.word_embeddings", final_norm="transformer.ln_f"),
)


def _pangu_bias(config: Config) -> bool:
    return any(config.bool(name, default=False) for name in ("attention_bias", "bias"))


PANGU = Decoder(
    qkv_bias=lambda config: config.bool("qkv_bias", default=_pangu_bias(config)),
    out_bias=_pangu_bias,
    mlp_bias="mlp_bias",
)
_PLAMO3_WINDOW = typed(last_full(8, "sliding_window_pattern"), window=2048)


def _plamo3_window(config: Config, heads: Heads, num_layers: int) -> Sequence[Cache]:
    if not config.has("sliding_window") and config.has("window_size"):
        config = config.having(sliding_window=config.int("window_size"))
    return _PLAMO3_WINDOW(config, heads, num_layers)


PLAMO3 = Decoder(
    attention_prefix="mixer",
    attention_names=("qkv_proj", "o_proj"),
    qk_norm=True,
    mlp_names=("gate_up_proj", "down_proj"),
    norms=("pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm"),
    window=_plamo3_window,
    frame=Frame(layers="model.layers.layers."),
)
