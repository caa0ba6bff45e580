"""Prefixes that end inside a block: the tokens that are the same are copied to a block of the request's own.

That is copy on write: until the copy both read one block, and the one that writes on gets its own.

Source: TensorRT-LLM's KV cache reuse, `enable_partial_reuse` with `copy_on_partial_reuse` (docs, "KV Cache System").
vLLM 0.32 does it for models with recurrent states alone.
"""

from __future__ import annotations

from memplan.simulate.blocks import Block
from memplan.simulate.chains import Chains, Key


class PartialBlocks:
    """Cached blocks by the block before them, with the request whose tokens they hold."""

    def __init__(self, chains: Chains, block_tokens: int) -> None:
        self._chains = chains
        self._block_tokens = block_tokens
        self._after: dict[Key, dict[Block, int]] = {}
        self._before: dict[Block, Key] = {}

    def add(self, block: Block, before: Key, request: int) -> None:
        """A block can be found, behind the one with the key `before` (0: it is the first)."""
        self._after.setdefault(before, {})[block] = request
        self._before[block] = before

    def remove(self, block: Block) -> None:
        """A block has been handed out again."""
        before = self._before.pop(block)
        same = self._after[before]
        del same[block]
        if not same:
            del self._after[before]

    def same_tokens(self, before: Key, request: int, place: int) -> int:
        """The most tokens that a cached block has in common with the request's block at `place`."""
        start = place * self._block_tokens
        others = set(self._after.get(before, {}).values()) - {request}
        same = (self._chains.same_tokens(request, other, start, start + self._block_tokens) for other in others)
        return max(same, default=0)
