"""One forward pass, as far as its memory depends on it, and the moments at which its memory may peak."""

from __future__ import annotations

from memplan.engines.transformers.families import Family
from memplan.engines.transformers.settings import Attention
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A pass of `tokens` new tokens of each of `sequences` rows over caches that then hold `keys` tokens of a row, of
    which a window layer keeps its window where `keeps_windows` is true. `cached_keys` is how long the cache is made,
    which is more than `keys` for a static one.

    `element_bytes` is the compute type's; `has_fused_kernels` is false where SDPA has nothing but its plain kernel for
    grouped queries (no flash attention for the type or the card), `repeats_heads` true where keys are copied to all
    query heads whatever the mask, `packs_queries` where a single token's query heads are packed by their keys instead.
    `groups_experts` says that a layer's experts run as one grouped product.
    """

    sequences: int
    tokens: int
    keys: int
    cached_keys: int
    keeps_windows: bool
    element_bytes: int
    attention: Attention
    is_padded: bool
    has_fused_kernels: bool
    repeats_heads: bool
    gqa_head_limit: int | None
    packs_queries: bool
    groups_experts: bool
    has_latent_cache: bool
    wide_mask: bool
    copies_logits: bool
    kernels: bool
    family: Family

    @property
    def rows(self) -> int:
        """Token vectors that go through the pass."""
        return self.sequences * self.tokens

    @property
    def scores(self) -> int:
        """Scores of one head: every new token with every key."""
        return self.sequences * self.tokens * self.keys

    def seen_keys(self, window: int | None) -> int:
        """The keys that attention is computed over when it does not stop at the last token: all that are cached, and
        for a single token no more than a window.
        """
        is_windowed = window is not None and self.keeps_windows and self.tokens == 1
        return min(self.cached_keys, window) if is_windowed and window is not None else self.cached_keys

    @property
    def softmax_bytes(self) -> float:
        """What eager attention holds for one score at its peak: in 16 bit the scores and two FP32 copies; float32 has
        no copy to make."""
        return 8.0 if self.element_bytes == 4 else self.family.score_bytes


@dataclass(frozen=True, slots=True)
class Moment:
    """What is alive at one point of a layer, beside weights, caches and what the whole pass keeps.

    `name` says where, `working` how the bytes come about. `is_cached` tells that the layer's own keys and values are
    in the cache by then.
    """

    size_bytes: int
    name: str
    working: str
    is_cached: bool = True


def largest(moments: list[Moment], own_cache_bytes: int = 0) -> Moment:
    """The moment that holds most, the layer's own cache counted where it is there by then."""
    return max(moments, key=lambda one: one.size_bytes + (own_cache_bytes if one.is_cached else 0))
