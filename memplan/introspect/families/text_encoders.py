"""Text encoders: BERT and its kin, told apart by a line of knobs; ELECTRA, DeBERTa, ModernBERT, Nomic and GTE beside
them.

Source: transformers 5.23, `models/{bert,roberta,mpnet,distilbert,electra,deberta_v2,modernbert}/modeling_*.py`.
Nomic's and GTE's published checkpoints come with their own code (`nomic_bert`, `new`), whose names are used here.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Tensor
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families import encoder
from memplan.introspect.families.encoder import Body, Sizes
from memplan.introspect.towers import BERT as BERT_LAYER
from memplan.introspect.towers import Shape, Style
from memplan.records import dataclass, field, replace

_BERT_LM = encoder.transform(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    bias="cls.predictions.bias",
    decoder="cls.predictions.decoder",
)
_ROBERTA_LM = encoder.transform("lm_head.dense", "lm_head.layer_norm", bias="lm_head.bias", decoder="lm_head.decoder")
_NEXT_SENTENCE = encoder.classifier("cls.seq_relationship", labels=2)
_TOKENS = Body(head=encoder.classifier())
_QUESTIONS = Body(head=encoder.classifier("qa_outputs"))
_CHOICE = Body(head=encoder.classifier(labels=1), pooled=True)
_DENSE_CLASSIFIER = Body(head=encoder.two_step("classifier.dense", "classifier.out_proj"))

BERT_BODIES: Mapping[str, Body] = {
    "ForPreTraining": Body(head=encoder.joined(_BERT_LM, _NEXT_SENTENCE), pooled=True),
    "ForMaskedLM": Body(head=_BERT_LM),
    "LMHeadModel": Body(head=_BERT_LM),
    "ForNextSentencePrediction": Body(head=_NEXT_SENTENCE, pooled=True),
    "ForSequenceClassification": Body(head=encoder.classifier(), pooled=True),
    "ForTokenClassification": _TOKENS,
    "ForQuestionAnswering": _QUESTIONS,
    "ForMultipleChoice": _CHOICE,
}
ROBERTA_BODIES: Mapping[str, Body] = {
    "ForMaskedLM": Body(head=_ROBERTA_LM),
    "ForCausalLM": Body(head=_ROBERTA_LM),
    "ForSequenceClassification": _DENSE_CLASSIFIER,
    "ForTokenClassification": _TOKENS,
    "ForQuestionAnswering": _QUESTIONS,
    "ForMultipleChoice": _CHOICE,
}
DISTILBERT_BODIES: Mapping[str, Body] = {
    "ForMaskedLM": Body(
        head=encoder.transform(
            "vocab_transform", "vocab_layer_norm", bias="vocab_projector.bias", decoder="vocab_projector"
        )
    ),
    "ForSequenceClassification": Body(head=encoder.two_step("pre_classifier", "classifier")),
    "ForTokenClassification": _TOKENS,
    "ForQuestionAnswering": _QUESTIONS,
    "ForMultipleChoice": Body(head=encoder.two_step("pre_classifier", "classifier", labels=1)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BertLike:
    """The knobs of a BERT-like family. Calling it builds the ModelSpec.

    `position_offset` is how many of the position table's rows are not positions (RoBERTa counts from the padding
    token).
    """

    prefix: str
    style: Style = BERT_LAYER
    layers: str = "encoder.layer"
    token_types: int | None = 2
    position_offset: int = 0
    relative_buckets: bool = False
    bodies: Mapping[str, Body] = field(default_factory=lambda: BERT_BODIES)
    has_pooler: bool = True

    def __call__(self, config: Config, name: str) -> ModelSpec:
        shape = _read_shape(config)
        vocab = config.int("vocab_size")
        positions = config.int("max_position_embeddings", default=512)
        tied = config.bool("tie_word_embeddings", default=True)
        sizes = Sizes(hidden=shape.hidden, vocab=vocab, labels=encoder.num_labels(config), tied=tied)
        body = encoder.find_body(config, self.bodies)
        prefix = f"{self.prefix}." if body else ""
        bare = (
            *_embeddings(vocab, positions, self._num_token_types(config), shape.hidden),
            *self._relative(config, shape),
            *self._pooler(shape, pooled=body is None or body.pooled),
        )
        layer = encoder.encoder_layer(shape, towers.layer(self.style, shape))
        return encoder.encoder_spec(
            config,
            name,
            shape,
            layers=(layer,) * shape.num_layers,
            shared=(*towers.under(prefix, bare), *(body.head(sizes) if body else ())),
            layer_prefix=f"{prefix}{self.layers}.",
            vocab=vocab,
            max_context=positions - self.position_offset,
            tied=tied,
        )

    def _num_token_types(self, config: Config) -> int:
        if self.token_types is None:
            return 0
        return config.int("type_vocab_size", default=self.token_types, minimum=0)

    def _relative(self, config: Config, shape: Shape) -> tuple[Tensor, ...]:
        if not self.relative_buckets:
            return ()
        buckets = config.int("relative_attention_num_buckets", default=32)
        return (towers.table("encoder.relative_attention_bias", buckets, shape.num_heads),)

    def _pooler(self, shape: Shape, *, pooled: bool) -> tuple[Tensor, ...]:
        return towers.dense("pooler.dense", shape.hidden, shape.hidden) if pooled and self.has_pooler else ()


def electra(config: Config, name: str) -> ModelSpec:
    """ELECTRA: word embeddings narrower than the layers, and no pooler."""
    shape = _read_shape(config)
    vocab, width = config.int("vocab_size"), config.int("embedding_size", default=128)
    positions = config.int("max_position_embeddings", default=512)
    tied = config.bool("tie_word_embeddings", default=True)
    bare = _embeddings(vocab, positions, config.int("type_vocab_size", default=2, minimum=0), width)
    if width != shape.hidden:
        bare = (*bare, *towers.dense("embeddings_project", shape.hidden, width))
    body = encoder.find_body(config, _ELECTRA_BODIES)
    sizes = Sizes(hidden=shape.hidden, vocab=vocab, labels=encoder.num_labels(config), embedding=width, tied=tied)
    prefix = "electra." if body else ""
    return encoder.encoder_spec(
        config,
        name,
        shape,
        layers=(encoder.encoder_layer(shape, towers.layer(BERT_LAYER, shape)),) * shape.num_layers,
        shared=(*towers.under(prefix, bare), *(body.head(sizes) if body else ())),
        layer_prefix=f"{prefix}encoder.layer.",
        vocab=vocab,
        max_context=positions,
        tied=tied,
    )


def _electra_lm(sizes: Sizes) -> tuple[Tensor, ...]:
    return (
        *blocks.norm("generator_predictions.LayerNorm", sizes.embedding, bias=True),
        *towers.dense("generator_predictions.dense", sizes.embedding, sizes.hidden),
        encoder.vocab_bias("generator_lm_head.bias", sizes.vocab),
        *encoder.untied("generator_lm_head", sizes, bias=False),
    )


_DISCRIMINATOR = encoder.two_step(
    "discriminator_predictions.dense", "discriminator_predictions.dense_prediction", labels=1
)
_ELECTRA_BODIES: Mapping[str, Body] = {
    "ForMaskedLM": Body(head=_electra_lm),
    "ForPreTraining": Body(head=_DISCRIMINATOR),
    "ForSequenceClassification": _DENSE_CLASSIFIER,
    "ForTokenClassification": _TOKENS,
    "ForQuestionAnswering": _QUESTIONS,
}


def _read_shape(config: Config) -> Shape:
    return Shape(
        hidden=config.int("hidden_size", "dim"),
        intermediate=config.int("intermediate_size", "hidden_dim"),
        num_layers=config.num_layers("num_hidden_layers", "n_layers"),
        num_heads=config.int("num_attention_heads", "n_heads"),
    )


def _embeddings(vocab: int, positions: int, token_types: int, width: int) -> tuple[Tensor, ...]:
    types = (towers.table("embeddings.token_type_embeddings", token_types, width),) if token_types else ()
    return (
        encoder.word_embeddings("embeddings.word_embeddings", vocab, width),
        towers.table("embeddings.position_embeddings", positions, width),
        *types,
        *blocks.norm("embeddings.LayerNorm", width, bias=True),
    )


BERT = BertLike(prefix="bert")
ROBERTA = BertLike(prefix="roberta", token_types=2, position_offset=2, bodies=ROBERTA_BODIES)
MPNET = BertLike(
    prefix="mpnet",
    style=replace(
        BERT_LAYER,
        attention=tuple(f"attention.attn.{name}" for name in "qkvo"),
        norms=("attention.LayerNorm", "output.LayerNorm"),
    ),
    token_types=None,
    position_offset=2,
    relative_buckets=True,
    bodies=ROBERTA_BODIES,
)
DISTILBERT = BertLike(
    prefix="distilbert",
    style=Style(
        attention=tuple(f"attention.{name}_lin" for name in ("q", "k", "v", "out")),
        mlp=("ffn.lin1", "ffn.lin2"),
        norms=("sa_layer_norm", "output_layer_norm"),
    ),
    layers="transformer.layer",
    token_types=None,
    bodies=DISTILBERT_BODIES,
    has_pooler=False,
)
