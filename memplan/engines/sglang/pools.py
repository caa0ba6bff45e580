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
from memplan.engines.sglang.settings import SglangSettings, is_blackwell
from memplan.records import dataclass, replace
from memplan.units import MIB, ceil_div

_EXPANDED_HEAD = 256
_SCALED_LATENT_BYTES = 656


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """What one rank keeps for its requests.

    `full_bytes` is one token in every layer of the full pool as SGLang counts it, `stored_full_bytes` as it is laid
    out; `window_bytes` one token in every layer of the window pool. `state_bytes` is one slot of recurrent states.
    `request_bytes` belongs to every running request. `window_tokens` is the window of the window layers.
    """

    full_bytes: float
    stored_full_bytes: float
    window_bytes: float = 0.0
    window_ratio: float = 0.0
    window_tokens: int = 0
    window_cap_tokens: int | None = None
    state_bytes: int = 0
    state_ratio: float = 0.0
    state_slots: int | None = None
    padding_slots: int = 0
    slots_per_request: int = 1
    request_bytes: int = 0
    num_requests: int = 0
    media_bytes: int = 0
    page_size: int = 1
    max_tokens: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether requests leave nothing behind."""
        return not (self.full_bytes or self.window_bytes or self.state_bytes)

    @property
    def token_bytes(self) -> float:
        """What one token of capacity costs, its part of the window pool included."""
        if not self.full_bytes:
            return self.window_bytes
        return self.full_bytes + (0.0 if self.window_cap_tokens is not None else self.window_ratio * self.window_bytes)

    @property
    def fixed_bytes(self) -> int:
        """What no token pays for: requests' own states, a window pool of fixed size."""
        window = 0.0 if self.window_cap_tokens is None else self.window_cap_tokens * self.window_bytes
        return round(self.request_bytes * (self.num_requests + 1) + window)

    def slots(self, budget_bytes: float) -> int:
        """Slots of recurrent states in a budget."""
        if not self.state_bytes:
            return 0
        if self.state_slots is not None:
            return self.state_slots
        share = budget_bytes * self.state_ratio / (1 + self.state_ratio)
        return max(0, int((share - self.padding_slots * self.state_bytes) // self.state_bytes))

    def tokens(self, budget_bytes: int) -> int:
        """The capacity that SGLang prints for a budget, media reserve included in it."""
        rest = float(budget_bytes - self.media_bytes)
        if self.state_bytes:
            rest -= (self.slots(rest) + self.padding_slots) * self.state_bytes
        rest -= self.fixed_bytes
        if rest <= 0 or not self.token_bytes:
            return 0
        tokens = int(rest // self.token_bytes)
        if self.max_tokens is not None:
            tokens = min(tokens, self.max_tokens)
        return tokens // self.page_size * self.page_size

    def used(self, tokens: int, budget_bytes: int) -> dict[str, int]:
        """The bytes of every pool at a capacity of `tokens` tokens."""
        parts: dict[str, int] = {}
        if self.full_bytes:
            parts["KV cache"] = round((tokens + self.page_size) * self.stored_full_bytes)
        if self.window_bytes:
            held = self.window_cap_tokens if self.window_cap_tokens is not None else self._window_pool(tokens)
            parts["KV cache of window layers"] = round(held * self.window_bytes)
        if self.state_bytes:
            slots = self.slots(float(budget_bytes - self.media_bytes)) + 1
            parts["recurrent states"] = slots * self.state_bytes
        if self.request_bytes:
            parts["compressor states of requests"] = self.request_bytes * (self.num_requests + 1)
        return {name: size for name, size in parts.items() if size > 0}

    def _window_pool(self, tokens: int) -> int:
        if not self.full_bytes:
            return tokens
        return int(tokens * self.window_ratio) // self.page_size * self.page_size

    def needed_tokens(self, context_tokens: int, concurrency: int, step_tokens: int) -> int:
        """The capacity at which `concurrency` requests of `context_tokens` have room in every pool."""
        pages = ceil_div(context_tokens, self.page_size) * self.page_size
        needed = pages * concurrency
        if not self.window_bytes or self.window_cap_tokens is not None:
            return needed
        inside = concurrency * min(context_tokens, self.window_tokens + self.page_size)
        inside += min(max(0, context_tokens - self.window_tokens), step_tokens)
        if not self.full_bytes:
            return inside
        return max(needed, ceil_div(round(inside * 1_000_000), round(self.window_ratio * 1_000_000)))

    def needed_bytes(self, context_tokens: int, concurrency: int, step_tokens: int) -> int:
        """The budget at which those requests have tokens and slots."""
        tokens = self.needed_tokens(context_tokens, concurrency, step_tokens)
        growing = tokens * self.token_bytes + self.fixed_bytes
        if not self.state_bytes:
            return round(growing) + self.media_bytes
        slots = concurrency * self.slots_per_request + self.padding_slots
        if self.state_slots is not None:
            return round(growing + self.state_slots * self.state_bytes) + self.media_bytes
        by_slots = slots * self.state_bytes * (1 + self.state_ratio) / self.state_ratio
        return round(max(growing * (1 + self.state_ratio), by_slots)) + self.media_bytes


def plan_pools(
    spec: ModelSpec, layers: tuple[Layer, ...], gpu: GpuSpec, settings: SglangSettings, rules: Rules
) -> Pools:
    """The pools of one rank that holds `layers`."""
    caches = list(_stored(spec, layers))
    if any(isinstance(cache, CompressedAttention) for cache in caches):
        from memplan.engines.sglang.compressed import compressed_pools

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
