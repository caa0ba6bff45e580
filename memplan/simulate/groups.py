"""What one group of layers keeps of a sequence, and which cached blocks of it make a prefix that can be used.

Source: vllm/v1/core/single_type_kv_cache_manager.py and kv_cache_interface.py at v0.32.0.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.simulation import CacheGroup
from memplan.simulate.blocks import NULL, Block, BlockPool
from memplan.simulate.chains import Key
from memplan.units import ceil_div

Found = tuple[list[list[Block]], int]


def skipped_tokens(group: CacheGroup, computed: int) -> int:
    """Tokens at the beginning that the next one no longer looks at, once `computed` are there."""
    if group.window_tokens is not None:
        return max(0, computed - group.window_tokens + 1)
    if group.chunk_tokens is not None:
        return computed // group.chunk_tokens * group.chunk_tokens
    return 0


def most_blocks(group: CacheGroup, tokens_in_flight: int, context_tokens: int) -> int | None:
    """The most blocks that one request is counted with when it is taken in; None where it holds all to its end."""
    if group.window_tokens is not None:
        tokens = min(group.window_tokens - 1 + tokens_in_flight, context_tokens)
        return ceil_div(tokens, group.block_tokens) + 1
    if group.chunk_tokens is not None:
        return ceil_div(min(group.chunk_tokens + tokens_in_flight, context_tokens), group.block_tokens)
    return None


def reachable_places(
    group: CacheGroup,
    first: int,
    last: int,
    boundaries: tuple[int, ...],
    retention_tokens: int | None,
    step_tokens: int,
) -> Sequence[int]:
    """Which of the blocks from `first` to before `last` can ever be found. Prefixes end at multiples of `step_tokens`.

    Layers with a window need its blocks alone. With a retention of None they keep those of every prefix; else those
    before the `boundaries` at which another request may go on, and before every multiple of the retention above 0.
    """
    if group.window_tokens is None:
        return range(first, last)
    needed = ceil_div(group.window_tokens - 1, group.block_tokens)
    places: set[int] = set()
    segment_tokens = step_tokens if retention_tokens is None else retention_tokens
    if segment_tokens:
        per_segment = segment_tokens // group.block_tokens
        if needed >= per_segment:
            return range(first, last)
        places.update(place for place in range(first, last) if place % per_segment >= per_segment - needed)
    if retention_tokens is not None:
        for boundary in boundaries:
            end = boundary // step_tokens * step_tokens // group.block_tokens
            places.update(range(max(first, end - needed), min(last, end)))
    return sorted(places)


def find_prefix(
    group: CacheGroup, members: list[int], pool: BlockPool, keys: list[Key], most_tokens: int, step_tokens: int
) -> Found:
    """The longest prefix of at most `most_tokens` that every member group has in the cache, as blocks of each.

    `keys` are those of the blocks, `members` the groups with these rules.
    """
    if group.window_tokens is not None:
        return _find_window(group, members, pool, keys, most_tokens, step_tokens)
    first = 0
    if group.chunk_tokens is not None:
        first = most_tokens // group.chunk_tokens * group.chunk_tokens // group.block_tokens
    tables: list[list[Block]] = [[NULL] * first for _ in members]
    for place in range(first, most_tokens // group.block_tokens):
        found = _find_all(members, pool, keys[place])
        if found is None:
            break
        for table, block in zip(tables, found, strict=True):
            table.append(block)
    count = len(tables[0]) * group.block_tokens // step_tokens * step_tokens // group.block_tokens
    return [table[:count] for table in tables], count * group.block_tokens


def _find_window(
    group: CacheGroup, members: list[int], pool: BlockPool, keys: list[Key], most_tokens: int, step_tokens: int
) -> Found:
    """From the end: the last place with as many cached blocks before it as the window looks at."""
    size = group.block_tokens
    needed = ceil_div(group.window_tokens - 1 if group.window_tokens else 0, size)
    most = most_tokens // size
    tables: list[list[Block]] = [[NULL] * most for _ in members]
    run = 0
    for place in range(most - 1, -1, -1):
        found = _find_all(members, pool, keys[place])
        if found is None:
            run = 0
            continue
        if run == 0 and (place + 1) * size % step_tokens:
            continue
        for table, block in zip(tables, found, strict=True):
            table[place] = block
        run += 1
        if run >= needed:
            return [table[: place + run] for table in tables], (place + run) * size
    count = run * size // step_tokens * step_tokens // size
    return [table[:count] for table in tables], count * size


def _find_all(members: list[int], pool: BlockPool, key: Key) -> list[Block] | None:
    found = []
    for member in members:
        block = pool.find((member, key))
        if block is None:
            return None
        found.append(block)
    return found
