"""What every encoder's ModelSpec has in common: layers that keep nothing, and a head that the architecture class
names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memplan.domain.attention import NoCache
from memplan.domain.model import Layer, Mlp, ModelSpec, Tower
from memplan.domain.tensors import Role, Shard, ShardKind, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import architecture, checkpoint_dtype
from memplan.introspect.towers import Shape
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a head's tensors depend on. `embedding` is the width of the word embeddings where it is not the hidden
    size.
    """

    hidden: int
    vocab: int = 0
    labels: int = 2
    embedding: int = 0
    tied: bool = True


Head = Callable[[Sizes], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """How an architecture class dresses the bare encoder: its prefix, its head, and whether the pooler stays."""

    head: Head
    pooled: bool = False


def encoder_layer(shape: Shape, tensors: tuple[Tensor, ...], *, gated: bool = False) -> Layer:
    """One layer that leaves nothing behind."""
    return Layer(
        kind="encoder",
        caches=(NoCache(),),
        tensors=tensors,
        query_width=shape.query_width,
        num_heads=shape.num_heads,
        mlp=Mlp(intermediate=shape.intermediate, gated=gated),
    )


def encoder_spec(
    config: Config,
    name: str,
    shape: Shape,
    *,
    layers: tuple[Layer, ...],
    shared: tuple[Tensor, ...],
    layer_prefix: str,
    vocab: int = 0,
    max_context: int = 0,
    tied: bool = False,
    towers: tuple[Tower, ...] = (),
) -> ModelSpec:
    """Return the ModelSpec of a model that generates nothing."""
    return ModelSpec(
        name=name,
        model_type=config.str("model_type"),
        architecture=architecture(config),
        dtype=checkpoint_dtype(config),
        hidden_size=shape.hidden,
        vocab_size=vocab,
        num_heads=shape.num_heads,
        max_context_tokens=max(max_context, 1),
        layers=layers,
        shared=shared,
        layer_prefix=layer_prefix,
        towers=towers,
        tied_embeddings=tied,
        is_generative=False,
    )


def find_body(config: Config, bodies: Mapping[str, Body]) -> Body | None:
    """The body of the architecture class, None for the bare encoder.

    Raises: UnsupportedModel for a class whose head is not known.
    """
    name = architecture(config)
    for suffix, body in bodies.items():
        if name.endswith(suffix):
            return body
    if not name or name.endswith("Model"):
        return None
    raise UnsupportedModel(f"unknown head of an encoder: `{name}`", hint="try --introspect torch")


def num_labels(config: Config) -> int:
    """How many classes a classifier tells apart: the entries of `id2label`, else `num_labels`, else two."""
    names = config.get("id2label")
    if isinstance(names, Mapping) and names:
        return len(names)
    return config.int("num_labels", "_num_labels", default=2)


def word_embeddings(name: str, vocab: int, width: int) -> Tensor:
    """The token table of an encoder."""
    return blocks.embedding(name, vocab, width)


def untied(name: str, sizes: Sizes, *, bias: bool) -> tuple[Tensor, ...]:
    """The output matrix of a masked language model, when it is not the token table."""
    return () if sizes.tied else blocks.lm_head(name, sizes.vocab, sizes.embedding or sizes.hidden, bias=bias)


def vocab_bias(name: str, vocab: int) -> Tensor:
    """A bias over the vocabulary, cut as the vocabulary is."""
    return blocks.vector(name, vocab, Role.LM_HEAD, shard=Shard(ShardKind.VOCAB, vocab))


def classifier(name: str = "classifier", *, labels: int | None = None, bias: bool = True) -> Head:
    """A single linear map onto the labels."""
    return lambda sizes: towers.dense(name, sizes.labels if labels is None else labels, sizes.hidden, bias=bias)


def two_step(first: str, second: str, *, labels: int | None = None) -> Head:
    """A square linear map, then one onto the labels."""
    return lambda sizes: (
        *towers.dense(first, sizes.hidden, sizes.hidden),
        *towers.dense(second, sizes.labels if labels is None else labels, sizes.hidden),
    )


def transform(dense: str, norm: str, *, bias: str, decoder: str) -> Head:
    """A masked language model's head: a square map, a norm, the token table read backwards, a bias."""
    return lambda sizes: (
        *towers.dense(dense, sizes.embedding or sizes.hidden, sizes.hidden),
        *blocks.norm(norm, sizes.embedding or sizes.hidden, bias=True),
        vocab_bias(bias, sizes.vocab),
        *untied(decoder, sizes, bias=True),
    )


def joined(*heads: Head) -> Head:
    """Several heads side by side."""
    return lambda sizes: tuple(tensor for head in heads for tensor in head(sizes))
