"""What one layer leaves behind for every sequence: a closed union, so that a new kind makes the type checker complain
wherever it is not handled.

All widths count elements, per token unless said otherwise, before any sharding. `num_kv_heads` is the number of heads
that are stored, `key_width` and `value_width` the elements of one head.
"""

from __future__ import annotations

from typing import Literal, Union

from memplan.domain.dtypes import DType
from memplan.records import dataclass


@dataclass(frozen=True, slots=True)
class FullAttention:
    """Keys and values of every token, for the whole context."""

    num_kv_heads: int
    key_width: int
    value_width: int


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """Keys and values of the last `window_tokens` tokens."""

    num_kv_heads: int
    key_width: int
    value_width: int
    window_tokens: int


@dataclass(frozen=True, slots=True)
class ChunkedLocal:
    """Keys and values of the current chunk of `chunk_tokens` tokens (Llama 4's local layers)."""

    num_kv_heads: int
    key_width: int
    value_width: int
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """One compressed latent per token, shared by all heads, plus the rotary key (multi-head latent attention).

    `num_heads`, `expanded_key_width` and `expanded_value_width` give the cache of an engine that stores the expanded
    keys and values instead.
    """

    latent_width: int
    rope_width: int
    num_heads: int
    expanded_key_width: int
    expanded_value_width: int


@dataclass(frozen=True, slots=True)
class LatentWindow:
    """One latent of `latent_width` elements and a rotary key, for all heads, of the last `window_tokens` tokens."""

    latent_width: int
    rope_width: int
    window_tokens: int


@dataclass(frozen=True, slots=True)
class CompressorState:
    """What is kept in FP32 while tokens are being compressed: `width` elements for each of the last `tokens`."""

    width: int
    tokens: int


@dataclass(frozen=True, slots=True)
class CompressedAttention:
    """One latent and rotary key for every `ratio` tokens of the context (DeepSeek V4), and the compressor's state."""

    latent_width: int
    rope_width: int
    ratio: int
    state: CompressorState


@dataclass(frozen=True, slots=True)
class IndexerKeys:
    """Keys of a sparse-attention indexer (DeepSeek sparse attention): 128 elements, usually in FP8 with scales.

    There is one key for every `ratio` tokens; `state` belongs to the indexer's own compressor, where it has one.
    """

    key_width: int
    ratio: int = 1
    state: CompressorState | None = None


@dataclass(frozen=True, slots=True)
class LinearState:
    """A state of fixed size per sequence: Mamba, gated delta net, short convolution, linear attention.

    `conv_elements` and `state_elements` are per layer and sequence; they split over tensor-parallel ranks along
    `shard_units` heads or channels. A convolution of `conv_kernel` taps needs the last `conv_kernel - 1` inputs, which
    is what engines keep and `conv_elements` counts; transformers keeps `conv_kernel` of them. A type that is None is
    the one the model computes in.
    """

    kind: Literal["mamba1", "mamba2", "gated_delta_net", "short_conv", "linear_attention", "rg_lru", "rwkv"]
    conv_elements: int
    state_elements: int
    shard_units: int
    state_dtype: DType | None = None
    conv_dtype: DType | None = None
    conv_kernel: int = 0


@dataclass(frozen=True, slots=True)
class SharedKV:
    """Nothing of its own: the layer reads the cache of layer `source_layer`."""

    source_layer: int


@dataclass(frozen=True, slots=True)
class CrossAttention:
    """Keys and values of an encoder's or image's `source_tokens` tokens: fixed per sequence, whatever is generated."""

    num_kv_heads: int
    key_width: int
    value_width: int
    source_tokens: int


@dataclass(frozen=True, slots=True)
class NoCache:
    """Nothing at all: encoders, and layers whose attention was removed."""


Cache = Union[  # noqa: UP007 - a runtime `X | Y` of dataclasses is not a valid type alias for every checker on 3.10
    FullAttention,
    SlidingWindow,
    ChunkedLocal,
    LatentAttention,
    LatentWindow,
    CompressedAttention,
    IndexerKeys,
    LinearState,
    SharedKV,
    CrossAttention,
    NoCache,
]
