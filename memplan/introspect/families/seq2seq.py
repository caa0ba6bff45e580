"""Encoder-decoders: BART and its kin, T5 and its kin, Whisper. The decoder is the model's layers, the encoder a tower.

Source: transformers 5.23, `models/{bart,mbart,pegasus,marian,m2m_100,t5,mt5,umt5,whisper}/modeling_*.py`.
transformers 5 ties T5's output to its token table whatever the config says; a T5 1.1 checkpoint that stores an output
matrix of its own holds that much more.
"""

from __future__ import annotations

from memplan.domain.attention import CrossAttention, FullAttention
from memplan.domain.model import Layer, Mlp, ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, towers
from memplan.introspect.config import Config
from memplan.introspect.families import encoder
from memplan.introspect.families.audio import encoder_shape, whisper_encoder
from memplan.introspect.families.decoder import architecture, checkpoint_dtype
from memplan.introspect.towers import Shape, Style
from memplan.records import dataclass, replace

_BART = replace(towers.WHISPER, key_bias=True)
_CROSS = tuple(f"encoder_attn.{name}_proj" for name in ("q", "k", "v", "out"))
_T5 = Style(
    attention=(),
    mlp=(),
    norms=(),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    norm_bias=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BartLike:
    """The knobs of a BART-like family. Calling it builds the ModelSpec.

    `positions` is `learned`, or `none` where they are computed; `position_offset` counts extra rows of their table.
    """

    positions: str = "learned"
    position_offset: int = 0
    embedding_norm: bool = False
    last_norm: bool = False
    logits_bias: bool = True
    labels: int = 3

    def __call__(self, config: Config, name: str) -> ModelSpec:
        up, down = _bart_shapes(config)
        vocab = config.int("vocab_size")
        limit = config.int("max_position_embeddings", default=1024)
        prefix, head = self._head(config, down.hidden, vocab)
        side = self._outside(limit, up.hidden)
        tensors = (*side, *towers.stack("layers", towers.layer(_BART, up), up.num_layers))
        shared = (*self._tables(config, vocab, down.hidden, prefix), *towers.under(f"{prefix}decoder.", side))
        return _spec(
            config,
            name,
            down,
            layers=(_bart_layer(_BART, down, up.hidden, limit),) * down.num_layers,
            shared=(*shared, *head),
            layer_prefix=f"{prefix}decoder.layers.",
            encoder_tower=towers.tower(Role.ENCODER, f"{prefix}encoder.", tensors),
            vocab=vocab,
            max_context=limit,
        )

    def _tables(self, config: Config, vocab: int, hidden: int, prefix: str) -> tuple[Tensor, ...]:
        """One token table for both halves; Marian may keep two, and nothing is shared where nothing is tied."""
        shared = config.bool("share_encoder_decoder_embeddings", default=True)
        tables = (encoder.word_embeddings(f"{prefix}shared", vocab, hidden),) if shared else ()
        if shared and config.bool("tie_word_embeddings", default=True):
            return tables
        return (
            *tables,
            encoder.word_embeddings(f"{prefix}encoder.embed_tokens", vocab, hidden),
            encoder.word_embeddings(f"{prefix}decoder.embed_tokens", _target_vocab(config, vocab), hidden),
        )

    def _outside(self, limit: int, hidden: int) -> tuple[Tensor, ...]:
        """What stands beside the layers, the same in both halves."""
        learned = self.positions == "learned"
        return (
            *((towers.table("embed_positions", limit + self.position_offset, hidden),) if learned else ()),
            *(blocks.norm("layernorm_embedding", hidden, bias=True) if self.embedding_norm else ()),
            *(blocks.norm("layer_norm", hidden, bias=True) if self.last_norm else ()),
        )

    def _head(self, config: Config, hidden: int, vocab: int) -> tuple[str, tuple[Tensor, ...]]:
        """The prefix of the bare model, and what the architecture class puts on it."""
        name = architecture(config)
        if name.endswith("ForSequenceClassification"):
            labels = encoder.num_labels(config) if config.has("id2label") else self.labels
            return "model.", _classification_head(hidden, labels)
        if not name or name.endswith(("ForConditionalGeneration", "MTModel")):
            target = _target_vocab(config, vocab)
            bias = replace(towers.parameter("final_logits_bias", 1, target), is_buffer=True)
            tied = config.bool("tie_word_embeddings", default=True)
            matrix = () if tied else blocks.lm_head("lm_head", target, hidden)
            return "model.", (*matrix, *((bias,) if self.logits_bias else ()))
        if name.endswith("Model"):
            return "", ()
        raise UnsupportedModel(f"unknown head of an encoder-decoder: `{name}`", hint="try --introspect torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Like:
    """The knobs of a T5-like family: whether MLPs are gated unless the config says, and which layers hold positions."""

    feed_forward: str = "relu"
    bias_in_every_layer: bool = False

    def __call__(self, config: Config, name: str) -> ModelSpec:
        shape = Shape(
            hidden=config.int("d_model", default=512),
            intermediate=config.int("d_ff", default=2048),
            num_layers=config.num_layers("num_layers", default=6),
            num_heads=config.int("num_heads", default=8),
            head_width=config.int("d_kv", default=64),
        )
        vocab = config.int("vocab_size")
        limit = config.int("n_positions", "max_position_embeddings", default=512)
        encoder_only, prefix, head = self._head(config, shape.hidden)
        first, later = (self._layer(config, shape, limit, decoder=False, first=flag) for flag in (True, False))
        table = (encoder.word_embeddings(f"{prefix}shared", vocab, shape.hidden),)
        last = blocks.norm("final_layer_norm", shape.hidden)
        if encoder_only:
            return encoder.encoder_spec(
                config,
                name,
                shape,
                layers=(first, *(later,) * (shape.num_layers - 1)),
                shared=(*table, *towers.under(f"{prefix}encoder.", last), *head),
                layer_prefix=f"{prefix}encoder.block.",
                vocab=vocab,
                max_context=limit,
            )
        stacked = (
            *towers.under("block.0.", first.tensors),
            *towers.stack("block", later.tensors, shape.num_layers - 1),
            *last,
        )
        num_decoder_layers = config.num_layers("num_decoder_layers", default=shape.num_layers)
        top, rest = (self._layer(config, shape, limit, decoder=True, first=flag) for flag in (True, False))
        return _spec(
            config,
            name,
            shape,
            layers=(top, *(rest,) * (num_decoder_layers - 1)),
            shared=(*table, *towers.under(f"{prefix}decoder.", last), *head),
            layer_prefix=f"{prefix}decoder.block.",
            encoder_tower=towers.tower(Role.ENCODER, f"{prefix}encoder.", stacked),
            vocab=vocab,
            max_context=limit,
            notes=_untied_note(config, vocab * shape.hidden),
        )

    def _layer(self, config: Config, shape: Shape, limit: int, *, decoder: bool, first: bool) -> Layer:
        """A block: attention, in the decoder attention to the encoder, an MLP, each behind its norm."""
        parts = (
            ["SelfAttention", "EncDecAttention", "DenseReluDense"] if decoder else ["SelfAttention", "DenseReluDense"]
        )
        kind = config.str("feed_forward_proj", default=self.feed_forward)
        gated = config.bool("is_gated_act", default=kind.startswith("gated-")) or kind.startswith("gated-")
        tensors: list[Tensor] = []
        for index, part in enumerate(parts):
            path = f"layer.{index}.{part}"
            if part == "DenseReluDense":
                ups = ("wi_0", "wi_1") if gated else ("wi",)
                names = tuple(f"{path}.{up}" for up in (*ups, "wo"))
                tensors += towers.feed_forward(names, shape.hidden, shape.intermediate, bias=False)
            else:
                tensors += towers.attention(tuple(f"{path}.{letter}" for letter in "qkvo"), shape, _T5)
            tensors += blocks.norm(f"layer.{index}.layer_norm", shape.hidden)
        if first or self.bias_in_every_layer:
            buckets = config.int("relative_attention_num_buckets", default=32)
            tensors.append(towers.table("layer.0.SelfAttention.relative_attention_bias", buckets, shape.num_heads))
        if not decoder:
            return encoder.encoder_layer(shape, tuple(tensors), gated=gated)
        return _decoder_layer(shape, tuple(tensors), limit, gated=gated)

    def _head(self, config: Config, hidden: int) -> tuple[bool, str, tuple[Tensor, ...]]:
        """Whether only the encoder is there, the prefix of the bare model, and what is put on it."""
        name = architecture(config)
        if name.endswith("EncoderModel"):
            return True, "", ()
        if name.endswith("ForTokenClassification"):
            return True, "transformer.", towers.dense("classifier", encoder.num_labels(config), hidden)
        if name.endswith("ForSequenceClassification"):
            return False, "transformer.", _classification_head(hidden, encoder.num_labels(config))
        if not name or name.endswith(("ForConditionalGeneration", "WithLMHeadModel", "Model")):
            return False, "", ()
        raise UnsupportedModel(f"unknown head of an encoder-decoder: `{name}`", hint="try --introspect torch")


def whisper(config: Config, name: str) -> ModelSpec:
    """Whisper: 30 s of sound are 3,000 mel frames, and after the convolutions 1,500 vectors for the decoder."""
    class_name = architecture(config)
    if class_name and not class_name.endswith(("ForConditionalGeneration", "Model")):
        raise UnsupportedModel(f"unknown head of an encoder-decoder: `{class_name}`", hint="try --introspect torch")
    up = encoder_shape(config, hidden=384, intermediate=1536, num_layers=4, num_heads=6)
    down = Shape(
        hidden=up.hidden,
        intermediate=config.int("decoder_ffn_dim", default=1536),
        num_layers=config.num_layers("decoder_layers", default=4),
        num_heads=config.int("decoder_attention_heads", default=6),
    )
    frames = config.int("max_source_positions", default=1500)
    limit = config.int("max_target_positions", default=448)
    vocab = config.int("vocab_size")
    prefix = "" if class_name == "WhisperModel" else "model."
    tensors = whisper_encoder(up, mel_bins=config.int("num_mel_bins", default=80), positions=frames)
    media = (towers.audio(up, tokens=frames, patches=frames),)
    outside = (
        encoder.word_embeddings(f"{prefix}decoder.embed_tokens", vocab, down.hidden),
        towers.table(f"{prefix}decoder.embed_positions", limit, down.hidden),
        *blocks.norm(f"{prefix}decoder.layer_norm", down.hidden, bias=True),
    )
    return _spec(
        config,
        name,
        down,
        layers=(_bart_layer(towers.WHISPER, down, up.hidden, frames),) * down.num_layers,
        shared=outside,
        layer_prefix=f"{prefix}decoder.layers.",
        encoder_tower=towers.tower(Role.ENCODER, f"{prefix}encoder.", tensors, media=media),
        vocab=vocab,
        max_context=limit,
    )


def _target_vocab(config: Config, vocab: int) -> int:
    """The decoder's vocabulary, where Marian keeps one of its own."""
    shared = config.bool("share_encoder_decoder_embeddings", default=True)
    return vocab if shared else config.int("decoder_vocab_size", default=vocab)


def _bart_shapes(config: Config) -> tuple[Shape, Shape]:
    up = encoder_shape(config, hidden=1024, intermediate=4096, num_layers=12, num_heads=16)
    down = Shape(
        hidden=up.hidden,
        intermediate=config.int("decoder_ffn_dim", default=4096),
        num_layers=config.num_layers("decoder_layers", default=12),
        num_heads=config.int("decoder_attention_heads", default=16),
    )
    return up, down


def _bart_layer(style: Style, shape: Shape, source_width: int, source_tokens: int) -> Layer:
    tensors = (
        *towers.layer(style, shape),
        *towers.attention(_CROSS, shape, style, source_width=source_width),
        *blocks.norm("encoder_attn_layer_norm", shape.hidden, bias=True),
    )
    return _decoder_layer(shape, tensors, source_tokens)


def _decoder_layer(shape: Shape, tensors: tuple[Tensor, ...], source_tokens: int, *, gated: bool = False) -> Layer:
    width = shape.query_width // shape.num_heads
    return Layer(
        kind="decoder",
        caches=(
            FullAttention(shape.num_heads, width, width),
            CrossAttention(shape.num_heads, width, width, source_tokens),
        ),
        tensors=tensors,
        query_width=shape.query_width,
        num_heads=shape.num_heads,
        mlp=Mlp(intermediate=shape.intermediate, gated=gated),
    )


def _untied_note(config: Config, elements: int) -> tuple[str, ...]:
    """What a reader of the parameter count should know, when the config says that nothing is tied."""
    if config.bool("tie_word_embeddings", default=True):
        return ()
    return (f"an output matrix of its own, if the checkpoint has one, is {elements:,} parameters more",)


def _classification_head(hidden: int, labels: int) -> tuple[Tensor, ...]:
    return (
        *towers.dense("classification_head.dense", hidden, hidden),
        *towers.dense("classification_head.out_proj", labels, hidden),
    )


def _spec(
    config: Config,
    name: str,
    shape: Shape,
    *,
    layers: tuple[Layer, ...],
    shared: tuple[Tensor, ...],
    layer_prefix: str,
    encoder_tower: Tower,
    vocab: int,
    max_context: int,
    notes: tuple[str, ...] = (),
) -> ModelSpec:
    return ModelSpec(
        name=name,
        model_type=config.str("model_type"),
        architecture=architecture(config),
        dtype=checkpoint_dtype(config),
        hidden_size=shape.hidden,
        vocab_size=vocab,
        num_heads=shape.num_heads,
        max_context_tokens=max_context,
        layers=layers,
        shared=shared,
        layer_prefix=layer_prefix,
        towers=(encoder_tower,),
        tied_embeddings=not any(tensor.role is Role.LM_HEAD for tensor in shared),
        notes=notes,
    )


BART = BartLike(position_offset=2, embedding_norm=True)
MBART = BartLike(position_offset=2, embedding_norm=True, last_norm=True)
PEGASUS = BartLike(last_norm=True)
MARIAN = BartLike()
M2M_100 = BartLike(positions="none", last_norm=True, logits_bias=False)
T5 = T5Like()
MT5 = T5Like(feed_forward="gated-gelu")
UMT5 = T5Like(feed_forward="gated-gelu", bias_in_every_layer=True)
