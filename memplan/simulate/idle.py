"""The pool of blocks again, for the jumping replica: what nobody shares is counted in runs, not block by block.

A run is the cached blocks of one request that no other can have. It is let go of as a whole, its end first, so that
what is left of it is always its beginning.
"""

from __future__ import annotations

from collections import OrderedDict

from memplan.simulate.blocks import Block
from memplan.simulate.chains import Key


class Run:
    """`count` cached blocks of one request, one after the other."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


class IdlePool:
    """Free blocks: plain ones, and cached ones from the one unused for longest; and where keys are found."""

    __slots__ = ("_found", "_idle", "cached", "num_blocks", "plain")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.plain = num_blocks
        self.cached = 0
        self._idle: OrderedDict[Block | Run, None] = OrderedDict()  # a dict gets slow when it is emptied from the front
        self._found: dict[Key, Block | list[Block]] = {}

    def find(self, key: Key) -> Block | None:
        """The block with this key that was there first."""
        found = self._found.get(key)
        return found[0] if isinstance(found, list) else found

    def take(self, count: int) -> None:
        """Hand out `count` free blocks."""
        if count <= self.plain:
            self.plain -= count
            return
        count -= self.plain
        self.plain = 0
        self.cached -= count
        idle = self._idle
        while count:
            first = next(iter(idle))
            if isinstance(first, Run):
                if first.count > count:
                    first.count -= count
                    return
                count -= first.count
                first.count = 0
            else:
                count -= 1
                self._forget(first)
            del idle[first]

    def give_run(self, count: int) -> Run:
        """Let go of cached blocks of one request."""
        run = Run(count)
        if count:
            self._idle[run] = None
            self.cached += count
        return run

    def hold_run(self, run: Run) -> int:
        """Take back what is left of a run."""
        count = run.count
        if count:
            del self._idle[run]
            self.cached -= count
            run.count = 0
        return count

    def give(self, block: Block) -> None:
        """Let go of a block with a key."""
        block.holders -= 1
        if not block.holders:
            self._idle[block] = None
            self.cached += 1

    def touch(self, block: Block) -> None:
        """Hold a block that was found."""
        if not block.holders:
            del self._idle[block]
            self.cached -= 1
        block.holders += 1

    def register(self, key: Key) -> Block:
        """A block that is held and has just been filled."""
        block = Block()
        block.key = (0, key)
        there = self._found.setdefault(key, block)
        if isinstance(there, list):
            there.append(block)
        elif there is not block:
            self._found[key] = [there, block]
        return block

    def _forget(self, block: Block) -> None:
        assert block.key is not None
        key = block.key[1]
        found = self._found[key]
        if isinstance(found, list) and len(found) > 1:
            found.remove(block)
        else:
            del self._found[key]
