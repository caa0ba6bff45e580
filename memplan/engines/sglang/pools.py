"""SGLang's pools: what one token of capacity costs, how a budget splits into pools, and what the asked requests need.

    budget = available after loading - available before loading x (1 - fraction) - reserve for media
    states: slots = (budget x r / (1 + r) - padding) / state                       r = mamba_full_memory_ratio
    tokens = (budget - states) / (full layers + ratio x window layers), down to whole pages

The tokens are those of the full pool, which is what the log prints as max_total_num_tokens; a window pool, where the
release gives the architecture one, holds `ratio` tokens for each of them. A latent is whole on every rank, heads are
cut over the ranks of one attention group. Layers that share another layer's cache are given slots all the same.

Source: model_runner.py profile_max_num_token and set_num_token_hybrid (0.3 to 0.5.6), model_runner_kv_cache_mixin.py
(0.5.7 to 0.5.10), pool_configurator.py and kv_cache_configurator.py (0.5.11 to 0.5.23).
Checked by: recorded runs, see tests/engines/sglang/test_sglang_pools.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.budget.kv_cache import KvFormat, state_bytes, token_bytes
from memplan.catalog.rules import Rules
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
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.engines.sglang.compressed import compressed_pools
from memplan.engines.sglang.pool_sizes import Pools
from memplan.engines.sglang.settings import SglangSettings, is_blackwell
from memplan.records import replace
from memplan.units import MIB

_EXPANDED_HEAD = 256
_SCALED_LATENT_BYTES = 656


def plan_pools(
    spec: ModelSpec, layers: tuple[Layer, ...], gpu: GpuSpec, settings: SglangSettings, rules: Rules
) -> Pools:
    """The pools of one rank that holds `layers`."""
    caches = list(_stored(spec, layers))
    if any(isinstance(cache, CompressedAttention) for cache in caches):
        return compressed_pools(spec, layers, settings, rules)
    windows = [cache for cache in caches if _is_window(cache)] if settings.pools_windows else []
    full = [cache for cache in caches if cache not in windows]
    counted = sum(_counted_bytes(cache, settings, rules, gpu) for cache in full)
    stored = sum(_stored_bytes(cache, settings, rules, gpu) for cache in full)
    drafted = _draft_share(spec, full, settings, rules)
    states = [cache for cache in caches if isinstance(cache, LinearState)]
    per_slot = round(sum(_state_bytes(state, settings) for state in states))
    return Pools(
        full_bytes=counted * (1 + drafted),
        stored_full_bytes=stored,
        window_bytes=sum(_stored_bytes(cache, settings, rules, gpu) for cache in windows),
        window_ratio=settings.window_ratio or rules["window_ratio"]["plain"],
        window_tokens=max((_window(cache) for cache in windows), default=0),
        state_bytes=per_slot,
        state_ratio=settings.state_ratio,
        state_slots=_explicit_slots(settings),
        padding_slots=rules["state_padding_slots"] if per_slot else 0,
        slots_per_request=rules["states_per_request"] if settings.radix_cache else 1,
        media_bytes=rules["media_reserve_mib"] * MIB if settings.reads_media else 0,
        page_size=settings.page_size,
        max_tokens=settings.max_total_tokens,
    )


def _stored(spec: ModelSpec, layers: tuple[Layer, ...]) -> Iterator[Cache]:
    """What every layer is given room for. An encoder's layers are given a cache that nothing reads."""
    for layer in layers:
        for cache in layer.caches:
            if isinstance(cache, SharedKV):
                yield from (shared for shared in spec.layers[cache.source_layer].caches if not _is_nothing(shared))
            elif not _is_nothing(cache):
                yield cache
        if not spec.is_generative and layer.num_heads and all(_is_nothing(cache) for cache in layer.caches):
            head = layer.query_width // layer.num_heads
            yield FullAttention(layer.num_heads, head, head)


def _is_nothing(cache: Cache) -> bool:
    return isinstance(cache, (NoCache, SharedKV))


def _is_window(cache: Cache) -> bool:
    return isinstance(cache, (SlidingWindow, ChunkedLocal, LatentWindow))


def _window(cache: Cache) -> int:
    if isinstance(cache, (SlidingWindow, LatentWindow)):
        return cache.window_tokens
    return cache.chunk_tokens if isinstance(cache, ChunkedLocal) else 0


def _counted_bytes(cache: Cache, settings: SglangSettings, rules: Rules, gpu: GpuSpec) -> float:
    """Bytes per token of one layer as SGLang divides memory by them."""
    scaled = _scaled_latent(cache, settings, rules, gpu)
    if scaled and not rules["sparse_entry_in_budget"] and isinstance(cache, LatentAttention):
        return (cache.latent_width + cache.rope_width) * settings.kv.element_bits / 8
    return _stored_bytes(cache, settings, rules, gpu)


def _stored_bytes(cache: Cache, settings: SglangSettings, rules: Rules, gpu: GpuSpec) -> float:
    """Bytes per token of one layer on one rank as it is laid out; 0 for what does not grow with tokens."""
    form, ranks = settings.kv, settings.ranks.attention
    if isinstance(cache, LatentAttention):
        if not rules["absorbed_latents"]:
            heads = max(1, cache.num_heads // ranks)
            return heads * 2 * _EXPANDED_HEAD * form.element_bits / 8
        if _scaled_latent(cache, settings, rules, gpu):
            return _SCALED_LATENT_BYTES
        return (cache.latent_width + cache.rope_width) * form.element_bits / 8
    if isinstance(cache, CrossAttention):
        return token_bytes(FullAttention(cache.num_kv_heads, cache.key_width, cache.value_width), form, ranks)
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal)):
        return max(1, cache.num_kv_heads // ranks) * _head_bits(cache, form) / 8
    return token_bytes(cache, form, ranks)


def _head_bits(cache: FullAttention | SlidingWindow | ChunkedLocal, form: KvFormat) -> float:
    return (cache.key_width + cache.value_width) * form.element_bits + 2 * form.head_bits


def _scaled_latent(cache: Cache, settings: SglangSettings, rules: Rules, gpu: GpuSpec) -> bool:
    """Whether a latent beside a sparse indexer is stored with scales and a 16-bit rotary key."""
    if not settings.sparse_attention or settings.kv.element_bits != 8 or gpu.vendor != "nvidia":
        return False
    blackwell = rules["sparse_entry"] == "scaled_before_blackwell" and is_blackwell(gpu)
    return isinstance(cache, LatentAttention) and not blackwell


def _state_bytes(state: LinearState, settings: SglangSettings) -> float:
    """One layer's state of one slot: the recurrence in FP32 unless told otherwise, the convolution in 16 bits."""
    recurrent = settings.state_dtype or state.state_dtype or DType.F32
    typed = replace(state, state_dtype=recurrent, conv_dtype=DType.BF16)
    return state_bytes(typed, settings.ranks.attention, dtype=settings.dtype)


def _explicit_slots(settings: SglangSettings) -> int | None:
    if settings.state_slots is not None:
        return max(1, settings.state_slots // settings.ranks.attention_groups)
    if not settings.radix_cache and settings.max_running is not None:
        return max(1, settings.max_running // settings.ranks.attention_groups)
    return None


def _draft_share(spec: ModelSpec, full: list[Cache], settings: SglangSettings, rules: Rules) -> float:
    """What a draft's layers add to a token: as much as so many of the target's layers."""
    if settings.drafting in (None, "ngram") or not rules["draft_before_pool"] or not full:
        return 0.0
    attention = [cache for cache in full if not isinstance(cache, IndexerKeys)]
    return settings.draft_layers / max(1, len(attention))
