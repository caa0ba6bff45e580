"""What a cache holds on each layer: after the prefill, at the end, and while it grows.

A dynamic cache is as long as its sequence. `torch.cat` makes the longer tensor before the shorter one is let go, so
one layer's keys (or values) are there twice for a moment. A window layer keeps a view of the whole prompt until the
first generated token replaces it: a prefill needs room for every layer's full length, whatever the window. A static
cache is made at once for the longest sequence, a window layer's for its window.

Formula (docs/engines/transformers.md, "Caches"): rows x tokens x heads x (key + value) x e.

Source: cache_utils.py, 4.36 to 5.23; modeling files of the latent families (5.15 caches latents, before it the
expanded keys and values).
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CompressedAttention,
    CompressorState,
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
from memplan.domain.model import Layer, ModelSpec
from memplan.engines.transformers.families import Family
from memplan.engines.transformers.settings import TransformersSettings
from memplan.records import dataclass

_STATE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """One layer's cache, in bytes of one device: after the prefill and at the end of the context.

    Beside it, for a moment: `packing_bytes` while the prompt is packed and `beside_bytes` while it then attends;
    `growing_bytes` while a generated token is appended, `expanded_bytes` while that token attends.
    """

    prefill_bytes: int
    final_bytes: int
    packing_bytes: int = 0
    beside_bytes: int = 0
    growing_bytes: int = 0
    expanded_bytes: int = 0


def layer_cache(layer: Layer, settings: TransformersSettings, rules: Rules, family: Family) -> LayerCache:
    """Return what a layer's cache holds."""
    prompt, context = settings.prompt_tokens, settings.context_tokens
    if settings.cache == "none":
        return LayerCache(prefill_bytes=0, final_bytes=0)
    parts = [_part(cache, layer, settings, rules, family) for cache in layer.caches]
    if settings.cache in ("static", "offloaded_static"):
        held = sum(part.tokens_bytes(context, whole=False) for part in parts)
        return LayerCache(prefill_bytes=held, final_bytes=held)
    if settings.cache == "quantized":
        return _quantized(parts, settings)
    whole = sum(part.tokens_bytes(prompt, whole=True) for part in parts)
    kept = round(whole * settings.kept_share)
    return LayerCache(
        prefill_bytes=kept,
        final_bytes=round(sum(part.tokens_bytes(context, whole=False) for part in parts) * settings.kept_share),
        beside_bytes=whole - kept,
        growing_bytes=max((part.largest_half(context) for part in parts), default=0),
    )


def model_token_bytes(spec: ModelSpec, settings: TransformersSettings, rules: Rules, family: Family) -> int:
    """Bytes per token of one sequence over all caching layers, window layers included, as this release caches them."""
    if settings.cache == "none":
        return 0
    per_layer: dict[int, float] = {}
    total = 0.0
    for layer in spec.layers:
        if id(layer) not in per_layer:
            parts = [_part(cache, layer, settings, rules, family) for cache in layer.caches]
            per_layer[id(layer)] = sum((part.key_bytes + part.value_bytes) / part.ratio for part in parts)
        total += per_layer[id(layer)]
    share = _quantized_share(settings) if settings.cache == "quantized" else 1.0
    return round(total / settings.sequences * share)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One cache of a layer: bytes per entry of the batch, split into keys and values, a window, and a fixed size.

    An entry stands for `ratio` tokens. Where that is more than one, `buffer_bytes` is what a token takes until its
    group is full; a prefill keeps a view of those of the whole prompt. `overlaps` keeps half of the last full group.
    """

    key_bytes: float = 0.0
    value_bytes: float = 0.0
    window: int | None = None
    fixed_bytes: int = 0
    ratio: int = 1
    buffer_bytes: float = 0.0
    overlaps: bool = False

    def tokens_bytes(self, tokens: int, *, whole: bool) -> int:
        """What `tokens` tokens take; the whole prompt in spite of a window where `whole` is true."""
        kept = tokens if self.window is None or whole else min(tokens, self.window)
        entries = round((self.key_bytes + self.value_bytes) * (kept // self.ratio))
        return entries + self.fixed_bytes + self._buffered_bytes(tokens, whole=whole)

    def largest_half(self, tokens: int) -> int:
        """The larger of keys and values, which is what `torch.cat` holds twice; a window layer holds both twice."""
        if self.window is not None:
            return round((self.key_bytes + self.value_bytes) * min(tokens, self.window))
        return round(max(self.key_bytes, self.value_bytes) * (tokens // self.ratio))

    def _buffered_bytes(self, tokens: int, *, whole: bool) -> int:
        if not self.buffer_bytes or not tokens:
            return 0
        waiting = tokens if whole else (tokens - 1) % self.ratio + 1
        last = self.ratio / 2 if self.overlaps and tokens >= self.ratio else 0
        return round(self.buffer_bytes * (waiting + last))


def _part(cache: Cache, layer: Layer, settings: TransformersSettings, rules: Rules, family: Family) -> _Part:
    element = settings.sequences * settings.dtype.bits / 8
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal)):
        copies_heads = family.caches_all_heads and cache.num_kv_heads > 1
        heads = layer.num_heads if copies_heads else cache.num_kv_heads
        return _Part(
            key_bytes=element * heads * cache.key_width,
            value_bytes=element * heads * cache.value_width,
            window=_window(cache, settings, rules),
        )
    if isinstance(cache, LatentAttention):
        if rules["latent_cache"]:
            return _Part(key_bytes=element * cache.latent_width, value_bytes=element * cache.rope_width)
        return _Part(
            key_bytes=element * cache.num_heads * cache.expanded_key_width,
            value_bytes=element * cache.num_heads * cache.expanded_value_width,
        )
    if isinstance(cache, LatentWindow):
        return _Part(key_bytes=element * (cache.latent_width + cache.rope_width), window=cache.window_tokens)
    if isinstance(cache, CompressedAttention):
        return _compressed(cache.latent_width + cache.rope_width, cache.ratio, cache.state, element)
    if isinstance(cache, IndexerKeys):
        wide = settings.sequences * _STATE_BYTES if family.wide_indexer else element
        return _compressed(cache.key_width, cache.ratio, cache.state, wide)
    if isinstance(cache, CrossAttention):
        width = cache.num_kv_heads * (cache.key_width + cache.value_width)
        return _Part(fixed_bytes=round(element * width * cache.source_tokens))
    if isinstance(cache, LinearState):
        return _Part(fixed_bytes=_state_bytes(cache, settings, family))
    if isinstance(cache, (SharedKV, NoCache)):
        return _Part()
    raise AssertionError(f"unhandled cache: {cache}")


def _compressed(width: int, ratio: int, state: CompressorState | None, element: float) -> _Part:
    """One entry for `ratio` tokens, and what the compressor keeps of tokens whose group is not full."""
    if state is None:
        return _Part(key_bytes=element * width, ratio=ratio)
    return _Part(
        key_bytes=element * width,
        ratio=ratio,
        buffer_bytes=element * state.width,
        overlaps=state.tokens > ratio,
    )


def _window(
    cache: FullAttention | SlidingWindow | ChunkedLocal, settings: TransformersSettings, rules: Rules
) -> int | None:
    """The tokens that a window layer keeps, where this release's cache knows of windows."""
    if settings.cache in ("dynamic", "offloaded") and not rules["dynamic_windows"]:
        return None
    if isinstance(cache, SlidingWindow):
        return cache.window_tokens
    return cache.chunk_tokens if isinstance(cache, ChunkedLocal) else None


def _state_bytes(state: LinearState, settings: TransformersSettings, family: Family) -> int:
    """A recurrent state: transformers keeps as many inputs as the convolution has taps, and most states in FP32."""
    taps = state.conv_kernel
    conv = state.conv_elements // (taps - 1) * taps if taps > 1 else state.conv_elements
    element = settings.dtype.bits // 8
    per_row = conv * element + state.state_elements * (element if family.narrow_state else _STATE_BYTES)
    return settings.sequences * per_row


def _quantized(parts: list[_Part], settings: TransformersSettings) -> LayerCache:
    """Packed elements with their scales, and a plain rest that is packed whenever it is full.

    The prefill packs what it also hands to attention; every later step expands the layer again to append to it.
    """
    quantized = settings.quantized
    prompt = _packed(parts, settings.prompt_tokens, settings)
    generated = settings.context_tokens - settings.prompt_tokens
    if quantized.backend == "fp8":
        final = _packed(parts, settings.context_tokens, settings)
    else:
        rest = generated % quantized.residual_tokens if quantized.residual_tokens else 0
        plain = sum(part.tokens_bytes(rest, whole=False) for part in parts)
        final = _packed(parts, settings.context_tokens - rest, settings) + plain
    expanded = sum(part.tokens_bytes(settings.context_tokens, whole=False) for part in parts)
    plain_prompt = sum(part.tokens_bytes(settings.prompt_tokens, whole=True) for part in parts)
    return LayerCache(
        prefill_bytes=prompt,
        final_bytes=final,
        packing_bytes=plain_prompt + _converting(parts, settings.prompt_tokens, settings),
        beside_bytes=plain_prompt,
        growing_bytes=expanded + _converting(parts, settings.context_tokens, settings),
        expanded_bytes=expanded,
    )


def _converting(parts: list[_Part], tokens: int, settings: TransformersSettings) -> int:
    """What packing or expanding holds beside keys and values: for FP8 two FP32 copies of one of them, less the one that
    is to come of it, and both as they were packed before; for the integer backends what quanto holds of one of them
    while it packs, three times over.
    """
    half = sum(part.largest_half(tokens) for part in parts)
    if settings.quantized.backend == "fp8":
        return half * (2 * _STATE_BYTES + 2) * 8 // settings.dtype.bits - half
    return 3 * half


def _packed(parts: list[_Part], tokens: int, settings: TransformersSettings) -> int:
    """Some tokens of a layer, packed: keys and values are two tensors."""
    share = _quantized_share(settings)
    scales = 2 * _STATE_BYTES if settings.quantized.backend == "fp8" else 0
    return sum(round(part.tokens_bytes(tokens, whole=True) * share) + scales for part in parts)


def _quantized_share(settings: TransformersSettings) -> float:
    """Packed bits of an element, its share of a scale and a zero point, over the compute type's bits."""
    width = settings.dtype.bits
    if settings.quantized.backend == "fp8":
        return 8 / width
    return (settings.quantized.bits + 2 * width / settings.quantized.group) / width
