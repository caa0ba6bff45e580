"""A pool of blocks as vLLM keeps it: free ones are handed out plain ones first, then the cached one unused for longest.

Blocks of finished requests stay findable under their key until they are handed out again. Blocks with one key are not
merged: the one that was there first is found.

Source: vllm/v1/core/block_pool.py and kv_cache_utils.py at v0.32.0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from memplan.simulate.chains import Key

BlockKey = tuple[int, Key]


class Block:
    """One block: how many requests hold it, and what is in it once it is full."""

    __slots__ = ("holders", "key")

    def __init__(self) -> None:
        self.holders = 1
        self.key: BlockKey | None = None


NULL = Block()
"""Stands in a table for a block that has left the window. It is not part of the pool."""


class BlockPool:
    """`num_blocks` blocks. Plain free blocks are only counted: which of them it is makes no difference."""

    def __init__(self, num_blocks: int, on_lost: Callable[[Block], None] | None = None) -> None:
        self.num_blocks = num_blocks
        self._on_lost = on_lost
        self._plain = num_blocks
        self._idle: OrderedDict[Block, None] = OrderedDict()  # a dict gets slow when it is emptied from the front
        self._found: dict[BlockKey, dict[Block, None]] = {}

    @property
    def free(self) -> int:
        return self._plain + len(self._idle)

    @property
    def cached(self) -> int:
        """Free blocks that may still be found."""
        return len(self._idle)

    def find(self, key: BlockKey) -> Block | None:
        """The block with this key that was there first."""
        blocks = self._found.get(key)
        return next(iter(blocks)) if blocks else None

    def take(self, count: int) -> list[Block]:
        """Hand out free blocks; what was cached in them is lost."""
        plain = min(count, self._plain)
        self._plain -= plain
        for _ in range(count - plain):
            block, _ = self._idle.popitem(last=False)
            assert block.key is not None
            same = self._found[block.key]
            del same[block]
            if not same:
                del self._found[block.key]
            if self._on_lost is not None:
                self._on_lost(block)
        return [Block() for _ in range(count)]

    def touch(self, blocks: Iterable[Block]) -> None:
        """Hold blocks that were found."""
        for block in blocks:
            if block is not NULL:
                if block.holders == 0:
                    del self._idle[block]
                block.holders += 1

    def give(self, blocks: Iterable[Block]) -> None:
        """Let go of blocks; those that nobody holds are free, the first ones to be handed out before the later ones."""
        for block in blocks:
            if block is NULL:
                continue
            block.holders -= 1
            if block.holders == 0:
                if block.key is None:
                    self._plain += 1
                else:
                    self._idle[block] = None

    def register(self, block: Block, key: BlockKey) -> None:
        """Make a full block findable."""
        block.key = key
        self._found.setdefault(key, {})[block] = None
