"""ChatGLM 1 to 3 and GLM-4 under their first name: two layouts that share one `model_type`.

Source: the published code of ChatGLM, as vLLM 0.33.0 reads it (`model_executor/models/chatglm.py`).
Checked by: the published parameter counts and the names in an index of ChatGLM3.
"""

from __future__ import annotations

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Tensor
from memplan.introspect import blocks
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder, Frame
from memplan.introspect.families.gpt import BLOOM, inner
from memplan.introspect.stack import is_set, key
from memplan.records import replace


def _glm_heads(config: Config) -> Heads:
    grouped = config.bool("multi_query_attention", default=False)
    kv = config.int("multi_query_group_num", default=1) if grouped else config.int(*blocks.HEADS)
    heads = blocks.read_heads(config)
    return replace(heads, num_kv_heads=kv)


def _glm_norms(config: Config) -> tuple[Tensor, ...]:
    bias = not config.bool("rmsnorm", default=True)
    return blocks.norms(("input_layernorm", "post_attention_layernorm"), config.int(*blocks.HIDDEN), bias=bias)


def _glm_final_norm(config: Config) -> tuple[Tensor, ...]:
    if not config.bool("post_layer_norm", default=True):
        return ()
    bias = not config.bool("rmsnorm", default=True)
    return blocks.norm("transformer.encoder.final_layernorm", config.int(*blocks.HIDDEN), bias=bias)


CHATGLM2 = Decoder(
    heads=_glm_heads,
    attention_prefix="self_attention",
    attention_names=("query_key_value", "dense"),
    qkv_bias=lambda config: is_set(config, "add_qkv_bias") or is_set(config, "add_bias_linear"),
    out_bias="add_bias_linear",
    mlp_names=("dense_h_to_4h", "dense_4h_to_h"),
    mlp_bias="add_bias_linear",
    intermediate=key("ffn_hidden_size"),
    layer_norms=_glm_norms,
    frame=Frame(
        layers="transformer.encoder.layers.",
        embedding="transformer.embedding.word_embeddings",
        final_norm="",
        lm_head="transformer.output_layer",
        vocab=key("padded_vocab_size", "vocab_size"),
        extra=_glm_final_norm,
    ),
)


CHATGLM1 = replace(
    BLOOM,
    attention_prefix="attention",
    intermediate=inner("inner_hidden_size"),
    frame=replace(
        BLOOM.frame, layers="transformer.layers.", final_norm="transformer.final_layernorm", extra=lambda config: ()
    ),
)


def chatglm(config: Config, name: str) -> ModelSpec:
    """ChatGLM: the first generation has another layout under the same `model_type`."""
    style = CHATGLM1 if config.has("inner_hidden_size") else CHATGLM2
    return style(config, name)
