"""vLLM's cache groups: how layers of several kinds share one pool of equal pages, and what a request takes of it.

V0, and V1 up to 0.9.0, keep every layer as if it had full attention, in one group. From 0.9.1 on, layers of one kind
form groups of equal size, every group claims its own blocks from a shared pool, and a page has the same bytes
everywhere: blocks of attention beside recurrent states grow until a page holds a state, and states are padded up to
the page.

Source: vllm/v1/core/kv_cache_utils.py, vllm/v1/kv_cache_interface.py and models/config.py (HybridAttentionMamba),
0.9.1 to 0.33. Checked by: the printed token counts of recorded runs (Qwen3-Next on two H200: 973,760, exact).
"""

from __future__ import annotations

from math import lcm
from typing import Literal

from memplan.budget.kv_cache import KvFormat, state_bytes, token_bytes
from memplan.catalog.rules import Rules
from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CrossAttention,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LinearState,
    SlidingWindow,
)
from memplan.domain.model import Layer, count_layers
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass, replace
from memplan.units import ceil_div, round_up

_BLOCK = 16
_BLOCK_LATENT = 64

Kind = Literal["full", "latent", "indexer", "window", "chunk", "state", "cross"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The page of one kind of layer: `page_bytes` for `block_size` tokens (or one state) of one layer on one rank."""

    kind: Kind
    block_size: int
    page_bytes: int
    window_tokens: int = 0

    def blocks_of(self, tokens: int, in_flight_tokens: int, states_per_request: int) -> int:
        """Blocks that one request of `tokens` tokens claims in one group of this kind."""
        if self.kind in ("full", "latent", "indexer"):
            return ceil_div(tokens, self.block_size)
        if self.kind == "window":
            return ceil_div(min(self.window_tokens - 1 + in_flight_tokens, tokens), self.block_size) + 1
        if self.kind == "chunk":
            return ceil_div(min(self.window_tokens + in_flight_tokens, tokens), self.block_size)
        if self.kind == "state":
            return states_per_request
        return ceil_div(self.window_tokens, self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroups:
    """The pool of one rank: `block_bytes` for one block over the layers that share it, and the groups that claim
    blocks.
    """

    pages: tuple[Page, ...]
    layers_per_group: int
    block_bytes: int
    block_size: int
    in_flight_tokens: int
    states_per_request: int

    def blocks_of(self, tokens: int) -> int:
        """Blocks that one request of `tokens` tokens claims over all groups."""
        return sum(page.blocks_of(tokens, self.in_flight_tokens, self.states_per_request) for page in self.pages)

    def max_tokens(self, blocks: int, limit: int) -> int:
        """The longest single request, up to `limit`, that `blocks` blocks hold; 0 when not even one token fits."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks_of(middle) <= blocks else (low, middle - 1)
        return low


def cache_groups(layers: tuple[Layer, ...], settings: VllmSettings, rules: Rules) -> CacheGroups | None:
    """Return the groups of one rank's layers; None when no layer keeps anything."""
    counts = _count_pages(layers, settings, rules)
    if not counts:
        return None
    grouping = rules["kv_groups"] if settings.generation == "v1" else "single"
    if grouping == "single" or len(counts) == 1 or _same_slots(counts):
        return _single_group(counts, settings, rules)
    return _hybrid_groups(_equal_pages(counts, grouping), settings, rules)


def _count_pages(layers: tuple[Layer, ...], settings: VllmSettings, rules: Rules) -> dict[Page, int]:
    """How many layers have each kind of page, in the order they appear."""
    block_size = settings.block_size or _default_block(layers, settings)
    counted = count_layers(layers)
    caches = [cache for layer, _ in counted for cache in layer.caches]
    states = [cache for cache in caches if isinstance(cache, LinearState)]
    attention = [cache for cache in caches if isinstance(cache, (FullAttention, LatentAttention))]
    state_page = max(
        (round(state_bytes(state, settings.layout.tensor, dtype=settings.dtype)) for state in states), default=0
    )
    if states and attention and settings.generation == "v1":
        block_size = max(block_size, _block_for_state(attention[0], state_page, settings))
    counts: dict[Page, int] = {}
    for layer, copies in counted:
        for cache in layer.caches:
            page = _page(cache, block_size, settings, rules)
            if page is None:
                continue
            if page.kind == "state" and attention and settings.generation == "v1":
                full = round(block_size * token_bytes(attention[0], settings.kv, settings.layout.tensor))
                page = replace(page, block_size=block_size, page_bytes=max(page.page_bytes, full))
            counts[page] = counts.get(page, 0) + copies
    return counts


def _default_block(layers: tuple[Layer, ...], settings: VllmSettings) -> int:
    latent = any(isinstance(cache, LatentAttention) for layer in layers for cache in layer.caches)
    return _BLOCK_LATENT if latent and settings.generation == "v1" else _BLOCK


def _block_for_state(attention: Cache, state_page: int, settings: VllmSettings) -> int:
    """The attention block whose page holds one recurrent state: the next multiple of the kernel's alignment."""
    align = _BLOCK_LATENT if isinstance(attention, LatentAttention) else _BLOCK
    per_token = token_bytes(attention, settings.kv, settings.layout.tensor)
    return align * ceil_div(state_page, round(align * per_token))


def _page(cache: Cache, block_size: int, settings: VllmSettings, rules: Rules) -> Page | None:
    form, ranks = settings.kv, settings.layout.tensor
    if isinstance(cache, LinearState):
        size = round(state_bytes(cache, ranks, dtype=settings.dtype))
        return Page(kind="state", block_size=block_size, page_bytes=size)
    if isinstance(cache, LatentAttention):
        return Page(
            kind="latent", block_size=block_size, page_bytes=round(block_size * _latent(cache, form, ranks, rules))
        )
    if isinstance(cache, CrossAttention):
        full = FullAttention(cache.num_kv_heads, cache.key_width, cache.value_width)
        size = round(block_size * token_bytes(full, form, ranks))
        return Page(kind="cross", block_size=block_size, page_bytes=size, window_tokens=cache.source_tokens)
    per_token = token_bytes(cache, form, ranks)
    if not per_token:
        return None
    size = round(block_size * per_token)
    if isinstance(cache, SlidingWindow):
        return Page(kind="window", block_size=block_size, page_bytes=size, window_tokens=cache.window_tokens)
    if isinstance(cache, ChunkedLocal):
        return Page(kind="chunk", block_size=block_size, page_bytes=size, window_tokens=cache.chunk_tokens)
    kind: Kind = "indexer" if isinstance(cache, IndexerKeys) else "full"
    return Page(kind=kind, block_size=block_size, page_bytes=size)


def _latent(cache: LatentAttention, form: KvFormat, ranks: int, rules: Rules) -> float:
    """Bytes per token of a latent: expanded before 0.7, padded to 256 bytes in some releases."""
    if not rules["mla"]:
        heads = max(1, ceil_div(cache.num_heads, ranks))
        return heads * (cache.expanded_key_width + cache.expanded_key_width) * form.element_bits / 8
    per_token = token_bytes(cache, form)
    align = rules["mla_alignment_bytes"]
    return round_up(round(per_token), align) if align else per_token


def _same_slots(counts: dict[Page, int]) -> bool:
    """Whether every layer needs the same token slots (all full attention, whatever the width of its heads)."""
    return all(page.kind in ("full", "latent", "indexer") for page in counts)


def _single_group(counts: dict[Page, int], settings: VllmSettings, rules: Rules) -> CacheGroups:
    """One group in which every attention layer keeps every token. Windows stay windows only when all layers have the
    same.
    """
    kinds = {page.kind for page in counts}
    first = next(iter(counts))
    window_only = kinds == {"window"} and len(counts) == 1 and settings.generation == "v1"
    page = first if window_only or kinds == {"state"} else replace(first, kind="full", window_tokens=0)
    block_bytes = sum(page.page_bytes * count for page, count in counts.items())
    return _groups((page,), sum(counts.values()), block_bytes, settings, rules)


def _equal_pages(counts: dict[Page, int], grouping: str) -> dict[Page, int]:
    """Enlarge the smaller pages: by more tokens per block where they divide the largest, else by padding."""
    largest = max(page.page_bytes for page in counts)
    if grouping != "unified" or all(page.page_bytes == largest for page in counts):
        return counts
    equal: dict[Page, int] = {}
    for page, count in counts.items():
        ratio, remainder = divmod(largest, page.page_bytes)
        block_size = page.block_size * ratio if not remainder and page.kind != "state" else page.block_size
        grown = replace(page, block_size=block_size, page_bytes=largest)
        equal[grown] = equal.get(grown, 0) + count
    return equal


def _hybrid_groups(counts: dict[Page, int], settings: VllmSettings, rules: Rules) -> CacheGroups:
    """Split every kind into groups of one size: the smallest kind's, or the largest's when they are nearly equal."""
    smallest, largest = min(counts.values()), max(counts.values())
    size = largest if largest < smallest * rules["balanced_groups"] else smallest
    pages = tuple(page for page, count in counts.items() for _ in range(ceil_div(count, size)))
    page_bytes = max(page.page_bytes for page in counts)
    return _groups(pages, size, page_bytes * size, settings, rules)


def _groups(
    pages: tuple[Page, ...], layers: int, block_bytes: int, settings: VllmSettings, rules: Rules
) -> CacheGroups:
    batches = rules["in_flight_batches"]
    if batches == "async":
        batches = settings.layout.pipeline if settings.layout.pipeline > 1 else (2 if settings.async_scheduling else 1)
    sizes = [page.block_size for page in pages if page.kind != "state"] or [pages[0].block_size]
    return CacheGroups(
        pages=pages,
        layers_per_group=layers,
        block_bytes=block_bytes,
        block_size=min(sizes) if len(set(sizes)) > 1 else lcm(*sizes),
        in_flight_tokens=batches * settings.batched_tokens,
        states_per_request=1,
    )
