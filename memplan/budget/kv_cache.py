"""Key-value cache bytes: per token of a growing cache, per sequence of a bounded one.

Formula (docs/memory-model.md, "KV cache"): heads kept x (key width + value width) x bytes per element, for every
layer that keeps a cache. Grouped-query attention multiplies by the key-value heads, not the query heads; latent
attention keeps one latent and one rotary key per token whatever the heads. Llama-3.1-70B at 4,096 tokens in FP16: 80
layers x 8 heads x (128 + 128) x 2 bytes x 4,096 = 1.25 GiB.
"""

from __future__ import annotations

from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LatentWindow,
    LinearState,
    NoCache,
    SharedKV,
    SlidingWindow,
)
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass
from memplan.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class KvFormat:
    """How cached elements are stored.

    `element_bits` is the width of an element, `head_bits` what every head of every token adds once for its key and
    once for its value (scales of a per-token-head quantization), `latent_bytes` the size of a latent entry where the
    format fixes it (FP8 latents with scales), `indexer_bytes` of an indexer key.
    """

    name: str
    element_bits: float
    head_bits: int = 0
    latent_bytes: int | None = None


_FORMATS = {
    "float16": KvFormat(name="float16", element_bits=16),
    "bfloat16": KvFormat(name="bfloat16", element_bits=16),
    "float32": KvFormat(name="float32", element_bits=32),
    "fp8": KvFormat(name="fp8", element_bits=8),
    "fp8_e4m3": KvFormat(name="fp8_e4m3", element_bits=8),
    "fp8_e5m2": KvFormat(name="fp8_e5m2", element_bits=8),
    "fp8_inc": KvFormat(name="fp8_inc", element_bits=8),
    "int8": KvFormat(name="int8", element_bits=8),
    "fp8_ds_mla": KvFormat(name="fp8_ds_mla", element_bits=8, latent_bytes=656),
    "nvfp4_ds_mla": KvFormat(name="nvfp4_ds_mla", element_bits=4.5, latent_bytes=352),
    "int8_per_token_head": KvFormat(name="int8_per_token_head", element_bits=8, head_bits=32),
    "fp8_per_token_head": KvFormat(name="fp8_per_token_head", element_bits=8, head_bits=32),
    "int4_per_token_head": KvFormat(name="int4_per_token_head", element_bits=4, head_bits=32),
    "nvfp4": KvFormat(name="nvfp4", element_bits=4.5),
    "mxfp8": KvFormat(name="mxfp8", element_bits=8.25),
}
_ALIASES = {
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "f16": "float16",
    "fp32": "float32",
    "e4m3": "fp8_e4m3",
}


def kv_format(name: str | None, model_dtype: DType) -> KvFormat:
    """The storage format of a cache: `auto` or None follow the model's type.

    Raises: UsageError for an unknown name.
    """
    key = (name or "auto").strip().lower()
    if key == "auto":
        return _FORMATS[model_dtype.value]
    key = _ALIASES.get(key, key)
    if key not in _FORMATS:
        raise UsageError(
            f"unknown KV cache dtype: `{name}`",
            hint=did_you_mean(key, [*_FORMATS, "auto"]) or f"use one of auto, {', '.join(_FORMATS)}",
        )
    return _FORMATS[key]


def kept_heads(num_kv_heads: int, ranks: int) -> int:
    """The key-value heads on one rank: at least one, so ranks beyond the heads hold copies."""
    return max(1, ceil_div(num_kv_heads, ranks))


def token_bytes(cache: Cache, form: KvFormat, ranks: int = 1) -> float:
    """Bytes that one token adds to one layer's cache on one rank; 0 for caches that do not grow with tokens.

    Windows are not applied here: a window layer costs this much per token up to its window.
    """
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal)):
        heads = kept_heads(cache.num_kv_heads, ranks)
        return heads * ((cache.key_width + cache.value_width) * form.element_bits + 2 * form.head_bits) / 8
    if isinstance(cache, (LatentAttention, LatentWindow)):
        if form.latent_bytes is not None:
            return form.latent_bytes
        return (cache.latent_width + cache.rope_width) * form.element_bits / 8
    if isinstance(cache, IndexerKeys):
        return (cache.key_width + 4 * ceil_div(cache.key_width, 128)) / cache.ratio
    if isinstance(cache, CompressedAttention):
        return (cache.latent_width + cache.rope_width) * form.element_bits / 8 / cache.ratio
    if isinstance(cache, (LinearState, SharedKV, CrossAttention, NoCache)):
        return 0
    raise AssertionError(f"unhandled cache: {cache}")


def sequence_bytes(cache: Cache, form: KvFormat, tokens: int, ranks: int = 1) -> float:
    """Bytes that a sequence of `tokens` tokens keeps in one layer on one rank, at element granularity (no pages)."""
    if isinstance(cache, (SlidingWindow, LatentWindow)):
        return token_bytes(cache, form, ranks) * min(tokens, cache.window_tokens)
    if isinstance(cache, ChunkedLocal):
        return token_bytes(cache, form, ranks) * min(tokens, cache.chunk_tokens)
    if isinstance(cache, CrossAttention):
        full = FullAttention(cache.num_kv_heads, cache.key_width, cache.value_width)
        return token_bytes(full, form, ranks) * cache.source_tokens
    if isinstance(cache, LinearState):
        return state_bytes(cache, ranks)
    return token_bytes(cache, form, ranks) * tokens


def state_bytes(state: LinearState, ranks: int = 1, *, dtype: DType = DType.BF16) -> float:
    """Bytes of a recurrent state of one sequence in one layer on one rank."""
    kept = ceil_div(state.shard_units, ranks) / state.shard_units
    conv = state.conv_elements * (state.conv_dtype or dtype).bits
    recurrent = state.state_elements * (state.state_dtype or dtype).bits
    return (conv + recurrent) * kept / 8


def model_token_bytes(spec: ModelSpec, form: KvFormat) -> int:
    """Bytes per token of one sequence over all caching layers, before sharding, window layers included.

    Indexer keys are left out: they are an engine's own addition to the cache.
    """
    counted = ((cache, copies) for layer, copies in spec.distinct_layers() for cache in layer.caches)
    return round(sum(token_bytes(cache, form) * n for cache, n in counted if not isinstance(cache, IndexerKeys)))


def growing_token_bytes(spec: ModelSpec, form: KvFormat) -> int:
    """Bytes per token of the layers that keep the whole context."""
    growing = (FullAttention, LatentAttention)
    counted = ((cache, copies) for layer, copies in spec.distinct_layers() for cache in layer.caches)
    return round(sum(token_bytes(cache, form) * n for cache, n in counted if isinstance(cache, growing)))
