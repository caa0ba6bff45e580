"""A paged cache: block tables of one or several groups of layers over one pool, with prefix sharing.

Source: vllm/v1/core/kv_cache_manager.py and kv_cache_coordinator.py at v0.32.0. Not modelled: drafts, recurrent states,
connectors to other caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm

from memplan.domain.simulation import CacheGroup, SimulationSettings
from memplan.simulate.blocks import NULL, Block, BlockPool
from memplan.simulate.chains import Chains, Key
from memplan.simulate.groups import find_prefix, most_blocks, reachable_places, skipped_tokens
from memplan.simulate.partial import PartialBlocks
from memplan.simulate.served import Served
from memplan.units import ceil_div


class PagedCache:
    """The blocks of one replica."""

    def __init__(self, settings: SimulationSettings, chains: Chains) -> None:
        self.groups = settings.groups
        self.copied_blocks = 0
        # over the tables of all that run: their length, and how many blocks are in them
        self.entries = self.held = 0
        self._chains = chains
        self._partial: PartialBlocks | None = None
        if settings.partial_reuse and settings.prefix_caching:
            self._partial = PartialBlocks(chains, settings.groups[0].block_tokens)
        self.pool = BlockPool(settings.num_blocks, self._partial.remove if self._partial is not None else None)
        self._caching = settings.prefix_caching
        self._longest = settings.context_tokens
        self._retention = settings.window_retention_tokens
        self._reserve_prompt = settings.reserve_prompt
        self._watermark = int(settings.watermark_fraction * (settings.num_blocks + 1))
        # what is under way still reads the blocks of its windows
        in_flight = settings.max_num_batched_tokens * (2 if settings.async_scheduling else 1)
        self._most = [most_blocks(group, in_flight, settings.context_tokens) for group in settings.groups]
        self._step_tokens = lcm(*(group.block_tokens for group in settings.groups))
        late = int(settings.async_scheduling)
        self._edges = [(group.block_tokens, _edges(group, late)) for group in settings.groups]
        kinds: dict[CacheGroup, list[int]] = {}
        for place, group in enumerate(settings.groups):
            kinds.setdefault(group, []).append(place)
        # layers that keep everything first: what they find bounds the rest
        self._kinds = sorted(kinds.items(), key=lambda kind: not _keeps_all(kind[0]))

    @property
    def used_blocks(self) -> int:
        return self.pool.num_blocks - self.pool.free

    @property
    def cached_blocks(self) -> int:
        return self.pool.cached

    def has_room_for(self, request: Served) -> bool:
        """Whether a request could ever be served here, alone."""
        needed = 0
        for group, most in zip(self.groups, self._most, strict=True):
            blocks = ceil_div(request.last_computed, group.block_tokens)
            needed += min(blocks, most) if most is not None else blocks
        return needed <= self.pool.num_blocks

    def find(self, request: Served) -> tuple[list[list[Block]], int]:
        """The cached blocks that a waiting request begins with, and how many tokens they hold. Its last token is
        always computed: what comes next is read off it.
        """
        empty: list[list[Block]] = [[] for _ in self.groups]
        if not self._caching or request.restored:
            return empty, request.restored
        hit = request.tokens - 1
        longest = 0
        found: dict[CacheGroup, tuple[list[list[Block]], int]] = {}
        while True:
            length = hit
            for group, members in self._kinds:
                if group in found and _keeps_all(group):
                    length = min(length, found[group][1])
                    continue
                keys = self._keys(request, group.block_tokens, length // group.block_tokens)
                found[group] = find_prefix(group, members, self.pool, keys, length, self._step_tokens)
                length = found[group][1]
                longest = max(longest, length)
            if length >= hit:
                break
            hit = length
            if len(self._kinds) == 1 or (len(self._kinds) == 2 and _keeps_all(self._kinds[0][0])):
                break
        # where layers that keep everything would go on, the others will keep what that takes
        request.junction = longest if longest > hit else 0
        for group, members in self._kinds:
            for member, table in zip(members, found[group][0], strict=True):
                empty[member] = table[: ceil_div(hit, group.block_tokens)] if _keeps_all(group) else table
        if self._partial is not None:
            hit += self._same_tokens(self._partial, request, len(empty[0]))
        return empty, hit

    def _same_tokens(self, partial: PartialBlocks, request: Served, place: int) -> int:
        """Tokens of the block after the found ones that are in the cache too."""
        block = self.groups[0].block_tokens
        before = self._keys(request, block, place)[place - 1] if place else 0
        return min(partial.same_tokens(before, request.index, place), request.tokens - 1 - place * block)

    def admit(self, request: Served, found: list[list[Block]], known: int, new: int, *, beside: bool) -> bool:
        """Give a waiting request its found blocks and slots for `new` tokens more, or nothing where they lack.

        `known` tokens are there already; `beside` others, the watermark is left free.
        """
        margin = self._watermark if beside else 0
        if self._reserve_prompt:
            whole = min(request.tokens, self._longest)
            if self._needed(request, whole, found, known, capped=True) + margin > self.pool.free:
                return False
        tokens = min(known + new, self._longest)
        if self._needed(request, tokens, found, known) + margin > self.pool.free:
            return False
        request.tables, request.registered = [], []
        request.looked_at = -2
        for group, blocks in zip(self.groups, found, strict=True):
            skipped = skipped_tokens(group, known) // group.block_tokens
            kept = blocks[skipped:]
            self.pool.touch(kept)
            self.entries += skipped + len(kept)
            self.held += len(kept) - kept.count(NULL)
            request.tables.append([NULL] * skipped + kept)
            request.registered.append(skipped + len(kept))
        if self._partial is not None and not request.restored and known % self.groups[0].block_tokens:
            self.copied_blocks += 1
        self._extend(request, tokens)
        self.register(request, min(known + new, request.tokens))
        return True

    def grow(self, request: Served, new: int) -> bool:
        """Give a running request slots for `new` tokens more. What has left its windows is let go of in any case."""
        computed = request.computed
        if (
            new == 1
            and request.looked_at == computed - 1
            and all(computed % size not in at for size, at in self._edges)
        ):
            request.looked_at = computed  # inside a block, and so is the edge of every window
            return True
        request.looked_at = computed if request.in_flight <= 1 else -2
        for group, table in zip(self.groups, request.tables, strict=True):
            self._let_go(table, skipped_tokens(group, computed - request.in_flight) // group.block_tokens)
        tokens = min(request.computed + new, self._longest)
        if self._needed(request, tokens, (), request.computed) > self.pool.free:
            return False
        self._extend(request, tokens)
        self.register(request, min(request.computed + new, request.tokens))
        return True

    def release(self, request: Served) -> None:
        """Let go of all blocks, the last ones to be handed out first."""
        for table in request.tables:
            self.pool.give(reversed(table))
            self.entries -= len(table)
            self.held -= len(table) - table.count(NULL)
        request.tables, request.registered = [], []

    def held_blocks(self, request: Served) -> int:
        """Blocks in its tables, shared ones included."""
        return sum(len(table) - table.count(NULL) for table in request.tables)

    def _let_go(self, table: list[Block], before: int) -> None:
        gone = []
        for place in range(min(before, len(table)) - 1, -1, -1):
            if table[place] is NULL:
                break
            gone.append(table[place])
            table[place] = NULL
        self.pool.give(gone)
        self.held -= len(gone)

    def _needed(
        self, request: Served, tokens: int, found: Sequence[list[Block]], known: int, *, capped: bool = False
    ) -> int:
        """Free blocks that `tokens` slots take, found ones that nobody holds included."""
        needed = 0
        for place, group in enumerate(self.groups):
            blocks = ceil_div(tokens, group.block_tokens)
            most = self._most[place]
            if capped and most is not None:
                blocks = min(blocks, most)
            if request.tables:
                needed += max(0, blocks - len(request.tables[place]))
                continue
            hits = found[place]
            skipped = skipped_tokens(group, known) // group.block_tokens
            idle = sum(1 for block in hits[skipped:] if block is not NULL and not block.holders)
            needed += max(0, blocks - max(skipped, len(hits))) + idle
        return needed

    def _extend(self, request: Served, tokens: int) -> None:
        for group, table in zip(self.groups, request.tables, strict=True):
            more = max(0, ceil_div(tokens, group.block_tokens) - len(table))
            table.extend(self.pool.take(more))
            self.entries += more
            self.held += more

    def register(self, request: Served, tokens: int) -> None:
        """Make the blocks that `tokens` fill findable: those of this step too, which it is about to fill."""
        if not self._caching:
            return
        if len(self.groups) > 1:
            tokens = tokens // self._step_tokens * self._step_tokens
        for place, group in enumerate(self.groups):
            full = tokens // group.block_tokens
            first = request.registered[place]
            if full <= first:
                continue
            keys = self._keys(request, group.block_tokens, full)
            table = request.tables[place]
            boundaries = (request.prompt - 1, request.junction)
            for each in reachable_places(group, first, full, boundaries, self._retention, self._step_tokens):
                if table[each] is not NULL:
                    self.pool.register(table[each], (place, keys[each]))
                    if self._partial is not None:
                        self._partial.add(table[each], keys[each - 1] if each else 0, request.index)
            request.registered[place] = full

    def _keys(self, request: Served, block_tokens: int, count: int) -> list[Key]:
        keys = request.keys.setdefault(block_tokens, [])
        if len(keys) < count:
            self._chains.extend(keys, request.index, block_tokens, count)
        return keys


def _keeps_all(group: CacheGroup) -> bool:
    return group.window_tokens is None and group.chunk_tokens is None


def _edges(group: CacheGroup, late: int) -> frozenset[int]:
    """Lengths, modulo the block's size, at which the next token begins, fills or lets go of a block; what is filled and
    let go of is known `late`, by so many tokens.
    """
    edges = {0, (group.block_tokens - 1 + late) % group.block_tokens}
    if group.window_tokens is not None:
        edges.add((group.window_tokens - 1 + late) % group.block_tokens)
    if group.chunk_tokens is not None:
        edges.add(late % group.block_tokens)
    if group.chunk_tokens is not None and group.chunk_tokens % group.block_tokens:
        edges.update(range(group.block_tokens))
    return frozenset(edges)
