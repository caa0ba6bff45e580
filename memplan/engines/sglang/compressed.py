"""DeepSeek V4's pools under SGLang: latents of every token in a window pool, of every 4th and 128th in the full pool.

Per token of capacity, over the layers of a rank (a prediction layer counts as one more window layer):

    full     latent / 4 + indexer key / 4 for every 1-in-4 layer, latent / 128 for every 1-in-128 layer
    window   latent for every layer, and the 1-in-4 compressors' states: 8 rows for every 128 tokens of the window pool
    requests the 1-in-128 compressors' states: 128 rows for every request (for every 128 window tokens before 0.5.15)

A latent is stored as FP8 values, a 16-bit rotary key and 8 bytes of scales: 448 + 2 x 64 + 8 = 584.

Source: sglang/srt/model_executor/pool_configurator.py DSV4PoolConfigurator, 0.5.12 to 0.5.23.
Checked by: two recorded runs of DeepSeek-V4-Flash on eight GPUs, 15,955.85 bytes per token.
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.attention import CompressedAttention, IndexerKeys
from memplan.domain.model import Layer, ModelSpec
from memplan.engines.sglang.pool_sizes import Pools
from memplan.engines.sglang.settings import SglangSettings
from memplan.units import ceil_div, round_up

_SCALE_BYTES = 8
_STATE_BYTES = 4
_ROWS_OF_FOUR = 8
_WINDOW = 128
_DEFAULT_REQUESTS = 2048
_EVICTION_TOKENS = 128


def compressed_pools(spec: ModelSpec, layers: tuple[Layer, ...], settings: SglangSettings, rules: Rules) -> Pools:
    """The pools of one rank."""
    caches = [cache for layer in layers for cache in layer.caches]
    fours = [cache for cache in caches if isinstance(cache, CompressedAttention) and cache.ratio == 4]
    rest = [cache for cache in caches if isinstance(cache, CompressedAttention) and cache.ratio != 4]
    keys = [cache for cache in caches if isinstance(cache, IndexerKeys)]
    some = (fours or rest)[0]
    latent = some.latent_width + 2 * some.rope_width + _SCALE_BYTES
    width = some.latent_width + some.rope_width
    key_bytes = keys[0].key_width + 4 * ceil_div(keys[0].key_width, 128) if keys else 0
    key_width = keys[0].key_width if keys else 0
    full = len(fours) * (latent + key_bytes) / 4 + sum(latent / cache.ratio for cache in rest)
    rows_of = settings.page_size if rules["compressor_state"] == "pages" else _WINDOW
    state = 4 * (width + key_width) * _STATE_BYTES * _ROWS_OF_FOUR / rows_of
    window = latent * (len(layers) + (1 if spec.mtp else 0)) + state * len(fours)
    if settings.drafting not in (None, "ngram"):
        growth = (len(layers) + 2) / (len(layers) + 1)
        full, window = full * growth, window * growth
    per_request = 0
    if rules["compressor_state"] == "tokens":
        window += sum(2 * width * _STATE_BYTES * cache.ratio / _WINDOW for cache in rest)
    else:
        per_request = sum(2 * width * _STATE_BYTES * cache.ratio for cache in rest)
    return Pools(
        full_bytes=full,
        stored_full_bytes=full,
        window_bytes=window,
        window_ratio=settings.window_ratio or rules["window_ratio"]["compressed"],
        window_tokens=_WINDOW,
        window_cap_tokens=_window_cap(settings, rules),
        request_bytes=per_request,
        num_requests=settings.max_running or _DEFAULT_REQUESTS,
        page_size=settings.page_size,
        max_tokens=settings.max_total_tokens,
    )


def _window_cap(settings: SglangSettings, rules: Rules) -> int | None:
    """Tokens of a window pool that is sized from the requests: their windows, steps in flight, and kept prefixes."""
    if not rules["window_cap"] or settings.max_running is None or settings.window_ratio is not None:
        return None
    if not settings.chunk_tokens:
        return None
    page, requests = settings.page_size, max(1, settings.max_running // settings.ranks.attention_groups)
    per_request = _WINDOW + max(1, settings.draft_tokens) * _EVICTION_TOKENS + 2 * page
    kept_prefixes = 4 * requests if settings.radix_cache else 0
    tokens = per_request * requests + 2 * settings.chunk_tokens + page + kept_prefixes * (_WINDOW + page)
    return round_up(tokens, page)
