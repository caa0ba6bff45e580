"""Multi-token-prediction layers: decoder layers behind the last one, that guess further tokens from its output.

They are stored in the checkpoint and loaded only for speculative decoding, so a ModelSpec keeps them apart. Each one
joins the embedding of the next token with the hidden state before it, and has norms of its own; some checkpoints store
the embedding and the head once more.

Source: vLLM 0.33.0, `model_executor/models/*_mtp.py`, for the names in published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from memplan.domain.tensors import Role, Tensor
from memplan.introspect import blocks
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder
from memplan.introspect.stack import Tensors
from memplan.records import dataclass, replace

MAX_MTP_LAYERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Mtp:
    """The names that a family gives to what stands around the decoder layer of a predictor."""

    join: str = "eh_proj"
    norms: tuple[str, ...] = ("enorm", "hnorm", "shared_head.norm")
    tables: tuple[str, ...] = ()

    def tensors(self, config: Config, layer: Iterable[Tensor], *, prefix: str) -> tuple[Tensor, ...]:
        """One predictor's tensors, under their full names."""
        hidden = config.int(*blocks.HIDDEN)
        vocab = config.int("vocab_size")
        own = (
            *(blocks.replicated(self.join, hidden, 2 * hidden, Role.MTP) if self.join else ()),
            *blocks.norms(self.norms, hidden),
            *(blocks.embedding(table, vocab, hidden) for table in self.tables),
            *layer,
        )
        return tuple(replace(tensor, name=f"{prefix}{tensor.name}") for tensor in own)


DEEPSEEK = Mtp(tables=("embed_tokens", "shared_head.head"))
ERNIE = Mtp(join="mtp_linear_proj.0", norms=("mtp_emb_norm.0", "mtp_hidden_norm.0"))
BAILING = Mtp(norms=("enorm", "hnorm", "final_layernorm"))
MIMO = Mtp(join="input_proj", norms=("token_layernorm", "hidden_layernorm", "final_layernorm"))
LONGCAT = Mtp(norms=("enorm.m", "hnorm.m"))
QWEN_OUTER = Mtp(join="fc", norms=("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"))


def num_mtp_layers(config: Config, *keys: str, default: int = 0) -> int:
    """How many predictors the checkpoint has; bounded, because each is made."""
    number = config.int(*(keys or ("num_nextn_predict_layers",)), default=default, minimum=0)
    return min(number, MAX_MTP_LAYERS)


def last_layer(style: Decoder, config: Config) -> tuple[Tensor, ...]:
    """The tensors of a decoder's last layer, which predictors repeat."""
    mixer, feed = style.make_mixers(config)[-1], style.make_feeds(config)[-1]
    return (*mixer.tensors, *feed.tensors, *style.make_norms(config))


def appended(style: Callable[[], Decoder], mtp: Mtp = DEEPSEEK, *, layer: Tensors | None = None) -> Tensors:
    """Predictors that are numbered on from the last layer, each holding a layer like it (DeepSeek V3), or `layer`."""

    def tensors(config: Config) -> tuple[Tensor, ...]:
        number = num_mtp_layers(config)
        if not number:
            return ()
        own = layer(config) if layer else last_layer(style(), config)
        first, prefix = config.num_layers(), style().frame.layers
        return tuple(
            tensor
            for index in range(first, first + number)
            for tensor in mtp.tensors(config, own, prefix=f"{prefix}{index}.")
        )

    return tensors


def numbered(
    style: Callable[[], Decoder],
    mtp: Mtp,
    *,
    prefix: str,
    keys: tuple[str, ...] = (),
    layer: Tensors | None = None,
) -> Tensors:
    """Predictors that are numbered from 0 under a prefix of their own, each holding `layer`, or one like the last."""

    def tensors(config: Config) -> tuple[Tensor, ...]:
        number = num_mtp_layers(config, *keys)
        if not number:
            return ()
        own = layer(config) if layer else last_layer(style(), config)
        return tuple(
            tensor for index in range(number) for tensor in mtp.tensors(config, own, prefix=f"{prefix}{index}.")
        )

    return tensors


def ernie(style: Callable[[], Decoder]) -> Tensors:
    """ERNIE 4.5: one predictor, whose decoder layer is dense and stands beside its norms, not inside."""

    def tensors(config: Config) -> tuple[Tensor, ...]:
        if not num_mtp_layers(config):
            return ()
        own = style()
        layer = (*own.make_mixers(config)[-1].tensors, *own.dense_feed(config).tensors, *own.make_norms(config))
        block = (replace(tensor, name=f"mtp_block.0.{tensor.name}") for tensor in layer)
        return ERNIE.tensors(config, block, prefix="model.")

    return tensors
