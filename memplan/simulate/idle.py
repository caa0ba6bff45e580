"""The pool of blocks again, for the jumping replica: what nobody shares is counted in runs, not block by block.

A run is the cached blocks of one request that no other can have. It is let go of as a whole, its end first, so that
what is left of it is always its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from memplan.simulate.chains import Key


class Run:
    """`count` cached blocks of one request, one after the other."""

    __slots__ = ("count",)

    def __init__(self, count: int) -> None:
        self.count = count


class Node:
    """One block that others may find: its key, and how many requests hold it."""

    __slots__ = ("holders", "key")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.holders = 1


class IdlePool:
    """Free blocks: plain ones, and cached ones from the one unused for longest; and where keys are found."""

    __slots__ = ("_found", "_idle", "cached", "num_blocks", "plain")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.plain = num_blocks
        self.cached = 0
        self._idle: OrderedDict[Node | Run, None] = OrderedDict()  # a dict gets slow when it is emptied from the front
        self._found: dict[Key, Node | list[Node]] = {}

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

    def find(self, keys: Iterable[Key]) -> list[Node]:
        """The blocks with these keys, up to the first that is not there; of equal ones the one that was there first."""
        nodes: list[Node] = []
        get = self._found.get
        for key in keys:
            found = get(key)
            if found is None:
                break
            nodes.append(found[0] if isinstance(found, list) else found)
        return nodes

    def touch(self, nodes: Iterable[Node]) -> None:
        """Hold blocks that were found."""
        for node in nodes:
            if not node.holders:
                del self._idle[node]
                self.cached -= 1
            node.holders += 1

    def give(self, nodes: Iterable[Node]) -> None:
        """Let go of blocks; the first ones are handed out before the later ones."""
        idle = self._idle
        for node in nodes:
            node.holders -= 1
            if not node.holders:
                idle[node] = None
                self.cached += 1

    def register(self, keys: Iterable[Key]) -> list[Node]:
        """Blocks that are held and have just been filled."""
        nodes = []
        setdefault = self._found.setdefault
        for key in keys:
            node = Node(key)
            there = setdefault(key, node)
            if there is not node:
                if isinstance(there, list):
                    there.append(node)
                else:
                    self._found[key] = [there, node]
            nodes.append(node)
        return nodes

    def _forget(self, node: Node) -> None:
        found = self._found[node.key]
        if isinstance(found, list) and len(found) > 1:
            found.remove(node)
        else:
            del self._found[node.key]
