"""vLLM's cache groups: how layers of several kinds share one pool of blocks, and what a request takes of it.

V0, and V1 up to 0.9.0, keep every layer as if it had full attention, in one group. From 0.9.1 on, layers of one kind
form groups of equal size, every group claims its own blocks from a shared pool, and a page has the same bytes
everywhere: smaller pages hold more tokens, or are padded. DeepSeek V4 puts pages of several sizes side by side in a
block: until 0.28 in tuples of one page of each size, from 0.29 on in whatever fills the widest group.

Source: vllm/v1/core/kv_cache_utils.py, kv_cache_planning.py and vllm/v1/kv_cache_interface.py, 0.9.1 to 0.33.
Checked by: benchmarks/vllm/kv_oracle.py, which asks vLLM's own planner; the printed token counts of recorded runs.
"""

from __future__ import annotations

from math import ceil

from memplan.catalog.rules import Rules
from memplan.domain.budget import GroupKind, PoolGroup
from memplan.domain.model import Layer
from memplan.engines.vllm.kv_pages import Kind, Page, layer_pages
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass, replace
from memplan.units import ceil_div

_GROUP_KINDS: dict[Kind, GroupKind] = {
    "full": "full",
    "latent": "full",
    "indexer": "full",
    "window": "window",
    "chunk": "chunk",
    "state": "state",
    "cross": "cross",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """Layers that share one block table: `page` says what a request claims, `size_bytes` is a block of them."""

    page: Page
    num_layers: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroups:
    """The pool of one rank: `block_bytes` for one block over the layers that share it, and the groups that claim
    blocks.

    `weighs_groups` marks releases that count a block of a group by the group's own bytes when they print how many
    requests fit.
    """

    groups: tuple[CacheGroup, ...]
    block_bytes: int
    in_flight_tokens: int
    weighs_groups: bool = False

    @property
    def block_size(self) -> int:
        """The tokens of the smallest block."""
        sizes = [group.page.block_size for group in self.groups if group.page.kind != "state"]
        return min(sizes, default=self.groups[0].page.block_size)

    def pool_groups(self) -> tuple[PoolGroup, ...]:
        """The groups as a budget records them."""
        return tuple(
            PoolGroup(
                kind=_GROUP_KINDS[group.page.kind],
                block_tokens=group.page.block_size,
                window_tokens=group.page.window_tokens,
            )
            for group in self.groups
        )

    def printed_block_size(self, context_tokens: int) -> int:
        """The tokens of a block in the line about the cache's size: a state stands for the longest context."""
        has_states = any(group.page.kind == "state" for group in self.groups)
        return min(self.block_size, context_tokens) if has_states else self.block_size

    def blocks_of(self, tokens: int) -> int:
        """Blocks that one request of `tokens` tokens claims over all groups."""
        return sum(group.page.blocks_of(tokens, self.in_flight_tokens) for group in self.groups)

    def printed_blocks_of(self, tokens: int) -> int:
        """What the line about the maximum concurrency divides the pool by."""
        if not self.weighs_groups:
            return self.blocks_of(tokens)
        claimed = (group.page.blocks_of(tokens, self.in_flight_tokens) * group.size_bytes for group in self.groups)
        return ceil(sum(claimed) / self.groups[0].size_bytes)

    def max_tokens(self, blocks: int, limit: int) -> int:
        """The longest single request, up to `limit`, that `blocks` blocks hold; 0 when not even one token fits."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks_of(middle) <= blocks else (low, middle - 1)
        return low


def cache_groups(layers: tuple[Layer, ...], settings: VllmSettings, rules: Rules) -> CacheGroups | None:
    """Return the groups of one rank's layers; None when no layer keeps anything."""
    counts = layer_pages(layers, settings, rules)
    if not counts:
        return None
    apart = settings.generation == "v1" and settings.hybrid_groups
    if any(page.kind == "chunk" for page in counts):
        apart = apart and rules["chunked_groups"]
    grouping = rules["kv_groups"] if apart else "single"
    if grouping == "single" and any(page.grows for page in counts):
        counts = _as_full(counts)
    if grouping == "single" or len(counts) == 1 or _same_slots(counts):
        return _pool([_group(counts)], settings, rules)
    if any(page.is_latent and page.kind == "window" for page in counts) and rules["mixed_pages"] != "none":
        arrange = _packed if rules["mixed_pages"] == "packed" else _tuples
        return arrange(counts, settings, rules)
    return _equal_groups(_equal_pages(counts, grouping), settings, rules)


def _as_full(counts: dict[Page, int]) -> dict[Page, int]:
    """Windows and chunks kept for the whole context, as layers beside them are."""
    merged: dict[Page, int] = {}
    for page, count in counts.items():
        if page.kind in ("window", "chunk", "state", "cross"):
            page = replace(page, kind="full", window_tokens=0)
        merged[page] = merged.get(page, 0) + count
    return merged


def _same_slots(counts: dict[Page, int]) -> bool:
    """Whether every layer needs the same token slots, whatever the width of its heads."""
    first = next(iter(counts))
    if any(page.block_size != first.block_size for page in counts):
        return False
    if first.grows:
        return all(page.grows for page in counts)
    return all((page.kind, page.window_tokens) == (first.kind, first.window_tokens) for page in counts)


def _group(counts: dict[Page, int]) -> CacheGroup:
    """One group of pages that claim the same slots."""
    return CacheGroup(
        page=next(iter(counts)),
        num_layers=sum(counts.values()),
        size_bytes=sum(page.page_bytes * count for page, count in counts.items()),
    )


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


def _equal_groups(counts: dict[Page, int], settings: VllmSettings, rules: Rules) -> CacheGroups:
    """Split every kind into groups of one size: the smallest kind's, or the largest's when they are nearly equal."""
    smallest, largest = min(counts.values()), max(counts.values())
    size = largest if largest < smallest * rules["balanced_groups"] else smallest
    page_bytes = max(page.page_bytes for page in counts)
    groups = [
        CacheGroup(page=page, num_layers=size, size_bytes=page_bytes * size)
        for page, count in counts.items()
        for _ in range(ceil_div(count, size))
    ]
    return _pool(groups, settings, rules)


def _buckets(counts: dict[Page, int]) -> list[dict[Page, int]]:
    """Pages by the slots they need, in the order they appear."""
    buckets: list[dict[Page, int]] = []
    for page, count in counts.items():
        for bucket in buckets:
            if _same_slots({**bucket, page: count}):
                bucket[page] = count
                break
        else:
            buckets.append({page: count})
    return buckets


def _split(bucket: dict[Page, int], parts: int) -> list[CacheGroup]:
    """A bucket dealt out to `parts` groups, layer by layer."""
    dealt = [
        {page: ceil_div(count - part, parts) for page, count in bucket.items() if count > part} for part in range(parts)
    ]
    return [_group(counts) for counts in dealt]


def _fewest_padded(sizes: list[int], least: int) -> int:
    """The size that several sizes are rounded up to multiples of with the least padding; the larger of equals."""
    candidates = range(least, max(sizes) + 1)
    return max(candidates, key=lambda size: (-sum(-value % size for value in sizes), size), default=least)


def _tuples(counts: dict[Page, int], settings: VllmSettings, rules: Rules) -> CacheGroups:
    """Groups of tuples that have one page of each size of the growing layers; every group takes as many tuples."""
    buckets = sorted(_buckets(counts), key=lambda bucket: not next(iter(bucket)).grows)
    sizes = sorted({page.page_bytes for page in buckets[0]})
    repeats = [max(bucket.values()) for bucket in buckets]
    per_group = _fewest_padded(repeats, repeats[0])

    def fitted(page: Page) -> Page:
        return replace(page, page_bytes=min(size for size in sizes if size >= page.page_bytes))

    groups = [_group(buckets[0])]
    for bucket, repeat in zip(buckets[1:], repeats[1:], strict=True):
        padded = {fitted(page): count for page, count in bucket.items()}
        groups += _split(padded, ceil_div(repeat, per_group))
    tuples = max(per_group if len(groups) > 1 else 0, repeats[0])
    widest = max(
        [repeats[0], *(ceil_div(repeat, ceil_div(repeat, per_group)) for repeat in repeats[1:])], default=tuples
    )
    weighed = rules["mixed_pages"] == "weighed_tuples"
    return _pool(groups, settings, rules, block_bytes=sum(sizes) * widest, weighs_groups=weighed)


def _packed(counts: dict[Page, int], settings: VllmSettings, rules: Rules) -> CacheGroups:
    """Groups that fill the block of the widest; buckets of one page of each size split evenly.

    A bucket whose sizes have different counts stays whole.
    """
    buckets = _buckets(counts)
    balanced = [len(set(bucket.values())) == 1 for bucket in buckets]
    mixed = [max(bucket.values()) for bucket, even in zip(buckets, balanced, strict=True) if even and len(bucket) > 1]
    even_counts = [max(bucket.values()) for bucket, even in zip(buckets, balanced, strict=True) if even]
    repeats = _fewest_padded(even_counts, max(mixed)) if mixed else None
    groups: list[CacheGroup] = []
    for bucket, even in zip(buckets, balanced, strict=True):
        parts = ceil_div(max(bucket.values()), repeats) if even and repeats else 1
        groups += _split(bucket, parts)
    return _pool(groups, settings, rules)


def _pool(
    groups: list[CacheGroup],
    settings: VllmSettings,
    rules: Rules,
    *,
    block_bytes: int | None = None,
    weighs_groups: bool = False,
) -> CacheGroups:
    batches = rules["in_flight_batches"]
    if batches == "async":
        batches = settings.layout.pipeline if settings.layout.pipeline > 1 else (2 if settings.async_scheduling else 1)
    return CacheGroups(
        groups=tuple(groups),
        block_bytes=block_bytes or max(group.size_bytes for group in groups),
        in_flight_tokens=batches * settings.batched_tokens,
        weighs_groups=weighs_groups,
    )
