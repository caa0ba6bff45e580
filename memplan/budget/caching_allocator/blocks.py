"""Blocks, the pools that free ones wait in, and what is said when no memory is left."""

from __future__ import annotations

from bisect import bisect_left

from memplan.budget.allocator import LARGE_REMAINDER_BYTES, ROUND_BYTES

# A free block is found by size first and address second: both in one integer, size above these bits.
ADDRESS_BITS = 48


class Block:
    """A piece of a segment between two neighbours (None at the segment's ends).

    A block is live, or free and in its pool's list, or waiting for another stream (neither); in an expandable segment
    it may also be unmapped: addresses without memory. Of two that merge the lower one stays, so the first block of a
    segment is the same object for as long as the segment lives.
    """

    __slots__ = ("after", "before", "freed_at", "is_free", "is_mapped", "pool", "requested", "size", "start")

    def __init__(self, size: int, start: int, pool: Pool, before: Block | None, after: Block | None) -> None:
        self.size = size
        self.start = start
        self.pool = pool
        self.before = before
        self.after = after
        self.requested = 0
        self.is_free = False
        self.is_mapped = True
        self.freed_at = 0

    @property
    def is_split(self) -> bool:
        """Whether it shares its segment with another block."""
        return self.before is not None or self.after is not None

    def cut(self, address: int) -> Block:
        """Cut the block at an address and return the upper part, which is its new neighbour."""
        upper = Block(self.start + self.size - address, address, self.pool, self, self.after)
        if self.after is not None:
            self.after.before = upper
        self.after = upper
        self.size -= upper.size
        return upper


class Pool:
    """The free blocks of one stream that are small, or those that are large, by size and then address.

    `owner` is the private pool's number, None for the common one. `clock` counts searches, and is shared by the
    streams: garbage collection tells the age of a block by it. `unmapped` is in order of address.
    """

    __slots__ = ("blocks", "clock", "is_small", "keys", "least_rest", "owner", "stream", "unmapped")

    def __init__(self, *, is_small: bool, stream: int, owner: int | None, clock: list[int], splits_all: bool) -> None:
        self.is_small = is_small
        self.stream = stream
        self.owner = owner
        self.clock = clock
        # A large block stays whole unless more than this would be left of it. All sizes are multiples of 512.
        self.least_rest = ROUND_BYTES if is_small or splits_all else LARGE_REMAINDER_BYTES + ROUND_BYTES
        self.keys: list[int] = []
        self.blocks: list[Block] = []
        self.unmapped: list[Block] = []

    def add(self, block: Block) -> None:
        """Take in a block that became free."""
        key = (block.size << ADDRESS_BITS) | block.start
        index = bisect_left(self.keys, key)
        self.keys.insert(index, key)
        self.blocks.insert(index, block)
        block.is_free = True
        block.freed_at = self.clock[0]

    def remove(self, block: Block) -> None:
        """Give up a free block."""
        index = bisect_left(self.keys, (block.size << ADDRESS_BITS) | block.start)
        del self.keys[index], self.blocks[index]
        block.is_free = False


class DeviceFull(Exception):
    """No memory for a request, after everything that could be given back was.

    `wanted_bytes` is the segment that was asked of the device, which is what PyTorch's own message names;
    `free_bytes` is what the device had left, the others are the allocator's level at that moment.
    """

    def __init__(
        self, *, wanted_bytes: int, free_bytes: int, capacity_bytes: int, allocated_bytes: int, reserved_bytes: int
    ) -> None:
        super().__init__(wanted_bytes, free_bytes, capacity_bytes)
        self.wanted_bytes = wanted_bytes
        self.free_bytes = free_bytes
        self.capacity_bytes = capacity_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes
