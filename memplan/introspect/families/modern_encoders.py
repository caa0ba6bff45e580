"""Text encoders that differ from BERT in more than names: DeBERTa v2/v3, ModernBERT, Nomic's and GTE's.

Source: transformers 5.23, `models/{deberta_v2,modernbert,nomic_bert}/modeling_*.py`; the code that nomic-ai's and
Alibaba-NLP's checkpoints come with (`nomic_bert`, `new`), whose tensor names are used here.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Tensor
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families import encoder
from memplan.introspect.families.encoder import Body, Sizes
from memplan.introspect.families.text_encoders import BERT_BODIES
from memplan.introspect.towers import BERT, Shape, Style
from memplan.records import replace

_DEBERTA = replace(
    BERT,
    attention=(
        *(f"attention.self.{name}_proj" for name in ("query", "key", "value")),
        "attention.output.dense",
    ),
)
_NOMIC = Style(
    attention=("attn.Wqkv", "attn.out_proj"),
    mlp=("mlp.fc11", "mlp.fc12", "mlp.fc2"),
    norms=("norm1", "norm2"),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
)


def deberta_v2(config: Config, name: str) -> ModelSpec:
    """DeBERTa v2 and v3: relative positions shared by all layers, with projections of their own unless shared."""
    shape = towers.read_shape(config, hidden=1536, intermediate=6144, num_layers=24, num_heads=24)
    vocab = config.int("vocab_size")
    tied = config.bool("tie_word_embeddings", default=True)
    body = encoder.find_body(config, _DEBERTA_BODIES)
    prefix = "deberta." if body else ""
    sizes = Sizes(hidden=shape.hidden, vocab=vocab, labels=encoder.num_labels(config), tied=tied)
    bare = (*_deberta_embeddings(config, vocab, shape.hidden), *_deberta_encoder(config, shape.hidden))
    layer = (*towers.layer(_DEBERTA, shape), *_deberta_positions(config, shape))
    return encoder.encoder_spec(
        config,
        name,
        shape,
        layers=(encoder.encoder_layer(shape, layer),) * shape.num_layers,
        shared=(*towers.under(prefix, bare), *(body.head(sizes) if body else ())),
        layer_prefix=f"{prefix}encoder.layer.",
        vocab=vocab,
        max_context=config.int("max_position_embeddings", default=512),
        tied=tied,
    )


def modernbert(config: Config, name: str) -> ModelSpec:
    """ModernBERT: fused projections, gated MLPs, norms before each half; the first layer has no attention norm."""
    shape = towers.read_shape(config, intermediate=1152, num_layers=22)
    vocab = config.int("vocab_size", default=50368)
    tied = config.bool("tie_word_embeddings", default=True)
    body = encoder.find_body(config, _modernbert_bodies(config))
    prefix = "model." if body else ""
    sizes = Sizes(hidden=shape.hidden, vocab=vocab, labels=encoder.num_labels(config), tied=tied)
    norm_bias = config.bool("norm_bias", default=False)
    first = encoder.encoder_layer(shape, _modernbert_layer(config, shape), gated=True)
    norm = blocks.norm("attn_norm", shape.hidden, bias=norm_bias)
    later = replace(first, tensors=(*norm, *first.tensors))
    bare = (
        encoder.word_embeddings("embeddings.tok_embeddings", vocab, shape.hidden),
        *blocks.norm("embeddings.norm", shape.hidden, bias=norm_bias),
        *blocks.norm("final_norm", shape.hidden, bias=norm_bias),
    )
    return encoder.encoder_spec(
        config,
        name,
        shape,
        layers=(first, *(later,) * (shape.num_layers - 1)),
        shared=(*towers.under(prefix, bare), *(body.head(sizes) if body else ())),
        layer_prefix=f"{prefix}layers.",
        vocab=vocab,
        max_context=config.int("max_position_embeddings", default=8192),
        tied=tied,
    )


def nomic_bert(config: Config, name: str) -> ModelSpec:
    """Nomic's BERT: rotary positions, gated MLPs without biases. Its config has GPT-2's key names, or BERT's."""
    shape = Shape(
        hidden=config.int("n_embd", "hidden_size"),
        intermediate=config.int("n_inner", "intermediate_size", default=3072),
        num_layers=config.num_layers("n_layer", "num_hidden_layers"),
        num_heads=config.int("n_head", "num_attention_heads"),
    )
    vocab = config.int("vocab_size")
    style = replace(
        _NOMIC,
        qkv_bias=config.bool("qkv_proj_bias", default=False),
        out_bias=config.bool("qkv_proj_bias", default=False),
        mlp_bias=config.bool("mlp_fc1_bias", default=False),
    )
    body = encoder.find_body(config, BERT_BODIES)
    tied = config.bool("tie_word_embeddings", default=True)
    sizes = Sizes(hidden=shape.hidden, vocab=vocab, labels=encoder.num_labels(config), tied=tied)
    types = config.int("type_vocab_size", default=2, minimum=0)
    bare = (
        encoder.word_embeddings("embeddings.word_embeddings", vocab, shape.hidden),
        *((towers.table("embeddings.token_type_embeddings", types, shape.hidden),) if types else ()),
        *blocks.norm("emb_ln", shape.hidden, bias=True),
        *(towers.dense("pooler.dense", shape.hidden, shape.hidden) if body and body.pooled else ()),
    )
    prefix = "bert." if body else ""
    return encoder.encoder_spec(
        config,
        name,
        shape,
        layers=(encoder.encoder_layer(shape, towers.layer(style, shape), gated=True),) * shape.num_layers,
        shared=(*towers.under(prefix, bare), *(body.head(sizes) if body else ())),
        layer_prefix=f"{prefix}encoder.layers.",
        vocab=vocab,
        max_context=config.int("n_positions", "max_position_embeddings", default=2048),
        tied=tied,
    )


def gte_new(config: Config, name: str) -> ModelSpec:
    """GTE's "new" encoder: rotary positions, one matrix for query, key and value, gate and up in another."""
    shape = towers.read_shape(config)
    hidden, vocab = shape.hidden, config.int("vocab_size", default=30528)
    types = config.int("type_vocab_size", default=1, minimum=0)
    body = encoder.find_body(config, _GTE_BODIES)
    sizes = Sizes(hidden=hidden, vocab=vocab, labels=encoder.num_labels(config))
    packed = config.bool("pack_qkv", default=True)
    names = ("qkv_proj", "o_proj") if packed else ("q_proj", "k_proj", "v_proj", "o_proj")
    style = replace(BERT, attention=tuple(f"attention.{part}" for part in names), norms=("attn_ln", "mlp_ln"), mlp=())
    layer = (
        *towers.attention(style.attention, shape, style),
        *blocks.norms(style.norms, hidden, bias=True),
        *_gated(shape, "mlp.up_gate_proj", "mlp.down_proj", up_bias=False, down_bias=True),
    )
    learned = config.str("position_embedding_type", default="rope") == "absolute"
    positions = config.int("max_position_embeddings", default=8192)
    bare = (
        encoder.word_embeddings("embeddings.word_embeddings", vocab, hidden),
        *((towers.table("embeddings.position_embeddings", positions, hidden),) if learned else ()),
        *((towers.table("embeddings.token_type_embeddings", types, hidden),) if types else ()),
        *blocks.norm("embeddings.LayerNorm", hidden, bias=True),
        *(towers.dense("pooler.dense", hidden, hidden) if body and body.pooled else ()),
    )
    prefix = "new." if body else ""
    return encoder.encoder_spec(
        config,
        name,
        shape,
        layers=(encoder.encoder_layer(shape, layer, gated=True),) * shape.num_layers,
        shared=(*towers.under(prefix, bare), *(body.head(sizes) if body else ())),
        layer_prefix=f"{prefix}encoder.layer.",
        vocab=vocab,
        max_context=positions,
        tied=True,
    )


def _modernbert_layer(config: Config, shape: Shape) -> tuple[Tensor, ...]:
    bias = config.bool("attention_bias", default=False)
    style = replace(BERT, attention=("attn.Wqkv", "attn.Wo"), qkv_bias=bias, out_bias=bias)
    mlp_bias = config.bool("mlp_bias", default=False)
    return (
        *towers.attention(style.attention, shape, style),
        *_gated(shape, "mlp.Wi", "mlp.Wo", up_bias=mlp_bias, down_bias=mlp_bias),
        *blocks.norm("mlp_norm", shape.hidden, bias=config.bool("norm_bias", default=False)),
    )


def _gated(shape: Shape, up: str, down: str, *, up_bias: bool, down_bias: bool) -> tuple[Tensor, ...]:
    """A gated MLP whose gate and up projections are one matrix."""
    both = towers.feed_forward((up, down), shape.hidden, 2 * shape.intermediate, bias=up_bias)
    last = towers.feed_forward((up, down), shape.hidden, shape.intermediate, bias=down_bias)
    return tuple(t for t in both if t.name.startswith(up)) + tuple(t for t in last if t.name.startswith(down))


def _modernbert_bodies(config: Config) -> Mapping[str, Body]:
    norm_bias = config.bool("norm_bias", default=False)
    dense_bias = config.bool("classifier_bias", default=False)
    decoder_bias = config.bool("decoder_bias", default=True)

    def head(sizes: Sizes) -> tuple[Tensor, ...]:
        dense = towers.dense("head.dense", sizes.hidden, sizes.hidden, bias=dense_bias)
        return (*dense, *blocks.norm("head.norm", sizes.hidden, bias=norm_bias))

    def masked(sizes: Sizes) -> tuple[Tensor, ...]:
        bias = (encoder.vocab_bias("decoder.bias", sizes.vocab),) if decoder_bias else ()
        return (*head(sizes), *encoder.untied("decoder", sizes, bias=False), *bias)

    labelled = Body(head=encoder.joined(head, encoder.classifier()))
    return {
        "ForMaskedLM": Body(head=masked),
        "ForSequenceClassification": labelled,
        "ForTokenClassification": labelled,
        "ForQuestionAnswering": labelled,
    }


def _deberta_embeddings(config: Config, vocab: int, hidden: int) -> tuple[Tensor, ...]:
    width = config.int("embedding_size", default=hidden)
    types = config.int("type_vocab_size", default=0, minimum=0)
    positions = config.int("max_position_embeddings", default=512)
    learned = config.bool("position_biased_input", default=True)
    return (
        encoder.word_embeddings("embeddings.word_embeddings", vocab, width),
        *((towers.table("embeddings.position_embeddings", positions, width),) if learned else ()),
        *((towers.table("embeddings.token_type_embeddings", types, width),) if types else ()),
        *(towers.dense("embeddings.embed_proj", hidden, width, bias=False) if width != hidden else ()),
        *blocks.norm("embeddings.LayerNorm", hidden, bias=True),
    )


def _deberta_encoder(config: Config, hidden: int) -> tuple[Tensor, ...]:
    """The relative position table and what stands beside the layers."""
    tensors: list[Tensor] = []
    if config.bool("relative_attention", default=False):
        tensors.append(towers.table("encoder.rel_embeddings", 2 * _position_reach(config), hidden))
    if "layer_norm" in config.str("norm_rel_ebd", default="none"):
        tensors += blocks.norm("encoder.LayerNorm", hidden, bias=True)
    if kernel := config.int("conv_kernel_size", default=0, minimum=0):
        groups = config.int("conv_groups", default=1)
        tensors += towers.conv(
            "encoder.conv.conv", hidden, blocks.exact_div(hidden, groups, "width", "groups"), kernel, bias=True
        )
        tensors += blocks.norm("encoder.conv.LayerNorm", hidden, bias=True)
    return tuple(tensors)


def _position_reach(config: Config) -> int:
    """How far relative positions are told apart: in buckets, else one by one."""
    buckets = config.get("position_buckets")
    if isinstance(buckets, int) and buckets > 0:
        return buckets
    reach = config.get("max_relative_positions")
    if isinstance(reach, int) and reach >= 1:
        return reach
    return config.int("max_position_embeddings", default=512)


def _deberta_positions(config: Config, shape: Shape) -> tuple[Tensor, ...]:
    """A layer's own projections of the relative positions, unless it uses those of the content."""
    if not config.bool("relative_attention", default=False) or config.bool("share_att_key", default=False):
        return ()
    kinds = config.get("pos_att_type")
    named = kinds.split("|") if isinstance(kinds, str) else config.strs("pos_att_type", default=())
    tensors: list[Tensor] = []
    for kind, projection in (("c2p", "pos_key_proj"), ("p2c", "pos_query_proj")):
        if kind in named:
            tensors += towers.dense(f"attention.self.{projection}", shape.query_width, shape.hidden)
    return tuple(tensors)


def _deberta_pooled(sizes: Sizes) -> tuple[Tensor, ...]:
    return towers.dense("pooler.dense", sizes.hidden, sizes.hidden)


_DEBERTA_BODIES: Mapping[str, Body] = {
    "ForMaskedLM": BERT_BODIES["ForMaskedLM"],
    "ForSequenceClassification": Body(head=encoder.joined(_deberta_pooled, encoder.classifier())),
    "ForTokenClassification": BERT_BODIES["ForTokenClassification"],
    "ForQuestionAnswering": BERT_BODIES["ForQuestionAnswering"],
    "ForMultipleChoice": Body(head=encoder.joined(_deberta_pooled, encoder.classifier(labels=1))),
}
_GTE_LM = encoder.transform("lm_head.dense", "lm_head.norm", bias="lm_head.decoder.bias", decoder="lm_head.decoder")
_GTE_BODIES: Mapping[str, Body] = {
    "ForMaskedLM": Body(head=_GTE_LM),
    "ForSequenceClassification": Body(head=encoder.classifier(), pooled=True),
    "ForTokenClassification": Body(head=encoder.classifier()),
    "ForQuestionAnswering": BERT_BODIES["ForQuestionAnswering"],
}
