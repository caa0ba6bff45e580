"""Decoders of the GPT-2 to Falcon years: biases, one matrix for query, key and value, learned positions.

Source: the modelling code and configuration defaults of transformers 5.23; for Qwen 1, ChatGLM, Jais, Phi-1.5 and
Phi-3-small the published code as vLLM reads it.
Checked by: the published parameter counts of those five.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks
from memplan.introspect.blocks import Heads, exact_div
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder, Frame
from memplan.introspect.stack import Width, key
from memplan.records import replace

_GPT_LAYERS = "transformer.h."


def inner(*names: str) -> Width:
    """The MLP's width under the first of `names`, or four times the hidden size."""
    return lambda config: config.optional_int(*names, minimum=1) or 4 * config.int(*blocks.HIDDEN)


def multi_query(config: Config) -> Heads:
    """One key-value head for all queries when `multi_query` is on, else one for each."""
    heads = blocks.read_heads(config)
    return replace(heads, num_kv_heads=1 if config.bool("multi_query", default=True) else heads.num_heads)


GPT2 = Decoder(
    attention_prefix="attn",
    attention_names=("c_attn", "c_proj"),
    qkv_bias=True,
    out_bias=True,
    mlp_names=("c_fc", "c_proj"),
    mlp_bias=True,
    gated=False,
    intermediate=inner("n_inner"),
    norms=("ln_1", "ln_2"),
    frame=Frame(
        layers=_GPT_LAYERS,
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        norm_bias=True,
        tied=True,
        extra=lambda config: _learned(config, "transformer.wpe", "n_positions", default=1024),
    ),
)
GPT_BIGCODE = replace(GPT2, heads=multi_query)
OPENAI_GPT = replace(
    GPT2,
    intermediate=inner(),
    frame=replace(
        GPT2.frame,
        embedding="transformer.tokens_embed",
        final_norm="",
        extra=lambda config: _learned(config, "transformer.positions_embed", "n_positions", default=512),
    ),
)
JAIS = replace(
    GPT2,
    mlp_names=("c_fc", "c_fc2", "c_proj"),
    gated=True,
    frame=replace(GPT2.frame, extra=lambda config: _jais_positions(config)),
)
QWEN = Decoder(
    attention_prefix="attn",
    attention_names=("c_attn", "c_proj"),
    qkv_bias=True,
    mlp_names=("w1", "w2", "c_proj"),
    intermediate=lambda config: exact_div(config.int("intermediate_size"), 2, "intermediate size", "halves"),
    norms=("ln_1", "ln_2"),
    frame=Frame(layers=_GPT_LAYERS, embedding="transformer.wte", final_norm="transformer.ln_f"),
)
GPTJ = Decoder(
    attention_prefix="attn",
    attention_names=("q_proj", "k_proj", "v_proj", "out_proj"),
    mlp_names=("fc_in", "fc_out"),
    mlp_bias=True,
    gated=False,
    intermediate=inner("n_inner"),
    norms=("ln_1",),
    frame=Frame(
        layers=_GPT_LAYERS,
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        norm_bias=True,
        head_bias=True,
    ),
)
CODEGEN = replace(GPTJ, attention_names=("qkv_proj", "out_proj"))
BLOOM = Decoder(
    attention_prefix="self_attention",
    attention_names=("query_key_value", "dense"),
    qkv_bias=True,
    out_bias=True,
    mlp_names=("dense_h_to_4h", "dense_4h_to_h"),
    mlp_bias=True,
    gated=False,
    intermediate=inner(),
    frame=Frame(
        layers=_GPT_LAYERS,
        embedding="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        norm_bias=True,
        tied=True,
        extra=lambda config: blocks.norm("transformer.word_embeddings_layernorm", _hidden(config), bias=True),
    ),
)
MPT = Decoder(
    attention_prefix="attn",
    attention_names=("Wqkv", "out_proj"),
    mlp_prefix="ffn",
    mlp_names=("up_proj", "down_proj"),
    gated=False,
    intermediate=inner(),
    norms=("norm_1", "norm_2"),
    frame=Frame(layers="transformer.blocks.", embedding="transformer.wte", final_norm="transformer.norm_f", tied=True),
)
GPT_NEOX = Decoder(
    attention_prefix="attention",
    attention_names=("query_key_value", "dense"),
    qkv_bias=("attention_bias", True),
    out_bias=("attention_bias", True),
    mlp_names=("dense_h_to_4h", "dense_4h_to_h"),
    mlp_bias=True,
    gated=False,
    frame=Frame(
        layers="gpt_neox.layers.",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        lm_head="embed_out",
        norm_bias=True,
    ),
)
PERSIMMON = Decoder(
    attention_names=("query_key_value", "dense"),
    qkv_bias=True,
    out_bias=True,
    qk_norm=("qk_layernorm", True),
    qk_norm_names=("q_layernorm", "k_layernorm"),
    qk_norm_bias=True,
    mlp_names=("dense_h_to_4h", "dense_4h_to_h"),
    mlp_bias=True,
    gated=False,
    frame=Frame(final_norm="model.final_layernorm", norm_bias=True),
)
PHI = Decoder(
    attention_names=("q_proj", "k_proj", "v_proj", "dense"),
    qkv_bias=True,
    out_bias=True,
    qk_norm="qk_layernorm",
    qk_norm_names=("q_layernorm", "k_layernorm"),
    qk_norm_bias=True,
    mlp_names=("fc1", "fc2"),
    mlp_bias=True,
    gated=False,
    norms=("input_layernorm",),
    frame=Frame(final_norm="model.final_layernorm", norm_bias=True, head_bias=True),
)
PHI_MSFT = Decoder(
    heads=lambda config: blocks.read_heads(config, default_kv=config.optional_int("n_head_kv", minimum=1)),
    attention_prefix="mixer",
    attention_names=("Wqkv", "out_proj"),
    qkv_bias=True,
    out_bias=True,
    mlp_names=("fc1", "fc2"),
    mlp_bias=True,
    gated=False,
    intermediate=inner("n_inner"),
    norms=("ln",),
    frame=Frame(
        layers=_GPT_LAYERS,
        embedding="transformer.embd.wte",
        final_norm="lm_head.ln",
        lm_head="lm_head.linear",
        norm_bias=True,
        head_bias=True,
    ),
)
PHI3_SMALL = Decoder(
    attention_names=("query_key_value", "dense"),
    qkv_bias=True,
    out_bias=True,
    mlp_names=("up_proj", "down_proj"),
    mlp_bias=True,
    intermediate=key("ff_intermediate_size", "intermediate_size"),
    frame=Frame(final_norm="model.final_layernorm", norm_bias=True, tied=True),
)
OPT = Decoder(
    attention_names=("q_proj", "k_proj", "v_proj", "out_proj"),
    qkv_bias=("enable_bias", True),
    out_bias=("enable_bias", True),
    mlp_prefix="",
    mlp_names=("fc1", "fc2"),
    mlp_bias=("enable_bias", True),
    gated=False,
    intermediate=key("ffn_dim"),
    layer_norms=lambda config: _opt_norms(config, "self_attn_layer_norm", "final_layer_norm"),
    frame=Frame(
        layers="model.decoder.layers.",
        embedding="model.decoder.embed_tokens",
        final_norm="",
        tied=True,
        width=lambda config: config.optional_int("word_embed_proj_dim", minimum=1) or _hidden(config),
        extra=lambda config: _opt_extra(config),
    ),
)
BIOGPT = replace(
    OPT,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    intermediate=key("intermediate_size"),
    norms=("self_attn_layer_norm", "final_layer_norm"),
    layer_norms=None,
    frame=Frame(
        layers="biogpt.layers.",
        embedding="biogpt.embed_tokens",
        final_norm="biogpt.layer_norm",
        lm_head="output_projection",
        norm_bias=True,
        tied=True,
        extra=lambda config: _learned(
            config, "biogpt.embed_positions", "max_position_embeddings", default=1024, offset=2
        ),
    ),
)
XGLM = replace(
    BIOGPT,
    intermediate=key("ffn_dim"),
    frame=Frame(final_norm="model.layer_norm", norm_bias=True, tied=True),
)


def _hidden(config: Config) -> int:
    return config.int(*blocks.HIDDEN)


def _learned(config: Config, name: str, *keys: str, default: int, offset: int = 0) -> tuple[Tensor, ...]:
    return (blocks.positions(name, config.int(*keys, default=default) + offset, _hidden(config)),)


def _jais_positions(config: Config) -> tuple[Tensor, ...]:
    """Jais with ALiBi has no table of positions."""
    if config.str("position_embedding_type", default="learned") == "alibi":
        return ()
    return _learned(config, "transformer.wpe", "n_positions", default=1024)


def _opt_norms(config: Config, *names: str) -> tuple[Tensor, ...]:
    """Norms have weights and biases unless `layer_norm_elementwise_affine` is off."""
    if not config.bool("layer_norm_elementwise_affine", default=True):
        return ()
    return blocks.norms(names, _hidden(config), bias=True)


def _opt_extra(config: Config) -> tuple[Tensor, ...]:
    """Positions, the maps in and out of a narrower embedding, and the final norm that post-norm models lack."""
    tensors = list(_learned(config, "model.decoder.embed_positions", "max_position_embeddings", default=2048, offset=2))
    hidden = _hidden(config)
    width = config.optional_int("word_embed_proj_dim", minimum=1) or hidden
    if width != hidden:
        tensors += blocks.replicated("model.decoder.project_in", hidden, width, Role.EMBEDDING)
        tensors += blocks.replicated("model.decoder.project_out", width, hidden, Role.LM_HEAD)
    if config.bool("do_layer_norm_before", default=True) and not config.bool("_remove_final_layer_norm", default=False):
        tensors += _opt_norms(config, "model.decoder.final_layer_norm")
    return tuple(tensors)


# Its local layers mask what is far away, and cache it all the same.
GPT_NEO = Decoder(
    attention_prefix="attn.attention",
    attention_names=("q_proj", "k_proj", "v_proj", "out_proj"),
    out_bias=True,
    mlp_names=("c_fc", "c_proj"),
    mlp_bias=True,
    gated=False,
    intermediate=inner("intermediate_size"),
    norms=("ln_1", "ln_2"),
    frame=Frame(
        layers=_GPT_LAYERS,
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
        norm_bias=True,
        tied=True,
        extra=lambda config: _learned(config, "transformer.wpe", "max_position_embeddings", default=2048),
    ),
)


def _falcon_heads(config: Config) -> Heads:
    """The newer architecture groups its heads, the older one has a single key-value head, or all of them."""
    if config.bool("new_decoder_architecture", default=False):
        kv = config.optional_int("num_kv_heads", "n_head_kv", minimum=1)
    else:
        kv = 1 if config.bool("multi_query", default=True) else None
    return blocks.read_heads(config, default_kv=kv)


def _falcon_norms(config: Config) -> tuple[Tensor, ...]:
    """Two norms beside each other, one after the other, or one for both halves."""
    parallel = config.bool("parallel_attn", default=True)
    beside = 2 if config.bool("new_decoder_architecture", default=False) else 1
    names: tuple[str, ...] = ("input_layernorm",)
    if not parallel:
        names = ("input_layernorm", "post_attention_layernorm")
    elif config.int("num_ln_in_parallel_attn", default=beside) == 2:
        names = ("ln_attn", "ln_mlp")
    return blocks.norms(names, _hidden(config), bias=True)


FALCON = replace(
    BLOOM,
    heads=_falcon_heads,
    qkv_bias="bias",
    out_bias="bias",
    mlp_bias="bias",
    intermediate=inner("ffn_hidden_size"),
    layer_norms=_falcon_norms,
    frame=replace(BLOOM.frame, extra=lambda config: ()),
)


def refined_web(config: Config, name: str) -> ModelSpec:
    """Falcon 40B under the name it was first published with."""
    return FALCON(config.having(new_decoder_architecture=True), name)
