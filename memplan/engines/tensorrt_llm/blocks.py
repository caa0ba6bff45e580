"""TensorRT-LLM's cache blocks: bytes per token over all layers of a rank, and how many blocks a size makes.

Every layer is sized as full attention, windows or not, unless max_attention_window says otherwise: gpt-oss-120b keeps
72 KiB a token although half of its layers look back 128 tokens. With several windows the memory is shared out by
window x bytes per token, and each window has a pool of its own.

    bytes per token = layers x heads kept x (key + value) x bytes     latents: layers x (latent + rotary key) x bytes

Source: tensorrt_llm/_torch/pyexecutor/resource_manager.py (get_cache_size_per_token), cpp kvCacheManager, 0.8 to 1.3.
Checked by: tests/engines/tensorrt_llm/test_tensorrt_llm_blocks.py.
"""

from __future__ import annotations

from memplan.budget.kv_cache import state_bytes, token_bytes
from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CrossAttention,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LinearState,
    SharedKV,
    SlidingWindow,
)
from memplan.domain.model import Layer, ModelSpec
from memplan.engines.tensorrt_llm.settings import TrtllmSettings
from memplan.records import dataclass, replace
from memplan.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPool:
    """Layers with one attention window: `token_bytes` is one token in all of them on one rank.

    `limit_tokens` is the window that was given, where one was; `window_tokens` is no longer than the context.
    """

    window_tokens: int
    token_bytes: float
    limit_tokens: int | None = None

    @property
    def weight(self) -> float:
        """Its part in the sharing-out of memory."""
        return self.window_tokens * self.token_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPools:
    """The cache of one rank. `state_bytes` is the recurrent state of one request, outside the blocks."""

    pools: tuple[WindowPool, ...]
    tokens_per_block: int
    rounds_up: bool
    state_bytes: int

    @property
    def token_bytes(self) -> float:
        """One token in every layer."""
        return sum(pool.token_bytes for pool in self.pools)

    @property
    def widest(self) -> WindowPool:
        """The pool that a request fills to its full length."""
        return max(self.pools, key=lambda pool: pool.window_tokens)

    def blocks(self, cache_bytes: float) -> int:
        """Blocks of the widest pool in a size; the engine flow rounds up, the PyTorch flow down."""
        if not self.pools or cache_bytes <= 0:
            return 0
        total = sum(pool.weight for pool in self.pools)
        share = self.widest.weight / total if len(self.pools) > 1 else 1.0
        blocks = cache_bytes * share / (self.widest.token_bytes * self.tokens_per_block)
        return ceil_div(round(blocks * 1000), 1000) if self.rounds_up else int(blocks)

    def used_bytes(self, blocks: int) -> int:
        """The bytes of all pools when the widest has so many blocks."""
        if not self.pools:
            return 0
        widest = blocks * self.tokens_per_block * self.widest.token_bytes
        return round(widest * sum(pool.weight for pool in self.pools) / self.widest.weight)

    def at_context(self, tokens: int) -> BlockPools:
        """The pools of the same layers when a request may be `tokens` long."""
        pools = [replace(pool, window_tokens=min(tokens, pool.limit_tokens or tokens)) for pool in self.pools]
        return replace(self, pools=tuple(pools))

    def request_blocks(self, tokens: int) -> int:
        """Blocks of the widest pool that a request of `tokens` tokens claims, in the pool that runs out first."""
        if not self.pools:
            return 0
        own = ceil_div(min(tokens, self.widest.window_tokens), self.tokens_per_block)
        for pool in self.pools:
            kept = ceil_div(min(tokens, pool.window_tokens), self.tokens_per_block)
            own = max(own, ceil_div(kept * self.widest.window_tokens, pool.window_tokens))
        return own


def plan_blocks(spec: ModelSpec, layers: tuple[Layer, ...], settings: TrtllmSettings) -> BlockPools:
    """The pools of one rank that holds `layers`."""
    by_limit: dict[int | None, float] = {}
    states = 0.0
    attention = 0
    for layer in layers:
        for cache in layer.caches:
            cache = spec.layers[cache.source_layer].caches[0] if isinstance(cache, SharedKV) else cache
            if isinstance(cache, LinearState):
                typed = replace(cache, state_dtype=settings.state_dtype or cache.state_dtype)
                states += state_bytes(typed, settings.attention_ranks, dtype=settings.dtype)
            size = _token_bytes(cache, settings)
            if not size:
                continue
            limit = settings.windows[attention % len(settings.windows)] if settings.windows else None
            by_limit[limit] = by_limit.get(limit, 0.0) + size
            attention += not isinstance(cache, IndexerKeys)
    context = settings.context_tokens
    return BlockPools(
        pools=tuple(
            WindowPool(window_tokens=min(context, limit or context), token_bytes=size, limit_tokens=limit)
            for limit, size in by_limit.items()
        ),
        tokens_per_block=settings.tokens_per_block,
        rounds_up=settings.flow == "tensorrt",
        state_bytes=round(states),
    )


def _token_bytes(cache: Cache, settings: TrtllmSettings) -> float:
    """Bytes per token of one layer on one rank, windows not applied."""
    form, ranks = settings.kv, settings.attention_ranks
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal)):
        heads = max(1, ceil_div(cache.num_kv_heads, ranks))
        return heads * (cache.key_width + cache.value_width) * form.element_bits / 8
    if isinstance(cache, LatentAttention):
        return (cache.latent_width + cache.rope_width) * form.element_bits / 8
    if isinstance(cache, CrossAttention):
        return token_bytes(FullAttention(cache.num_kv_heads, cache.key_width, cache.value_width), form, ranks)
    return token_bytes(cache, form, ranks)
