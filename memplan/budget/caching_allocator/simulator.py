"""The caching allocator with a segment for every large request: PyTorch's default.

Requests are rounded, served from the smallest free block that fits, and split from it; freed blocks merge with free
neighbours and stay cached. On a miss a segment is taken of the device; when the device is full, first old segments are
collected (where that is set), then oversize blocks are returned, then all that hold nothing, then memory is out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

from memplan.budget.allocator import (
    OWN_SEGMENT_BYTES,
    ROUND_BYTES,
    SMALL_REQUEST_BYTES,
    SMALL_SEGMENT_BYTES,
)
from memplan.budget.caching_allocator.blocks import ADDRESS_BITS, Block, DeviceFull, Pool
from memplan.budget.caching_allocator.settings import NUM_INTERVALS, AllocatorSettings
from memplan.units import MIB, round_up

_BELOW = ROUND_BYTES - 1
_WHOLE = -ROUND_BYTES
_NO_LIMIT = 1 << 62


class CachingAllocator:
    """Allocates and frees by size. The attributes that end in `_bytes` are levels as PyTorch's statistics have them.

    `room_bytes` is what the device has for it in all (None: no limit), of `capacity_bytes` that the device calls its
    own; `on_reserve` is called whenever memory is taken of the device or returned to it, with the address, the bytes
    taken (less than 0 where returned) and the pool; `on_ready` with each block that other streams are done with. The
    peaks are those since `reset_peak`, which phases begin with.
    """

    splits_all = False

    def __init__(
        self,
        settings: AllocatorSettings,
        *,
        capacity_bytes: int | None = None,
        room_bytes: int | None = None,
    ) -> None:
        self.settings = settings
        self.capacity_bytes = capacity_bytes
        self._room = _NO_LIMIT if capacity_bytes is None else capacity_bytes if room_bytes is None else room_bytes
        fraction = settings.memory_fraction
        limits = fraction is not None and fraction < 1 and capacity_bytes is not None
        self._allowed = int((fraction or 1) * (capacity_bytes or 0)) if limits else _NO_LIMIT
        self.on_reserve: Callable[[int, int, Pool], None] | None = None
        self.on_ready: Callable[[Block], None] | None = None
        self._collects = settings.gc_threshold > 0 and self._allowed < _NO_LIMIT
        self._limit = settings.max_split_bytes or _NO_LIMIT
        self._is_plain = self._limit == _NO_LIMIT and not self._collects and not self.splits_all
        self._divisions = settings.roundup_divisions if any(d > 1 for d in settings.roundup_divisions) else ()
        self._pools: dict[tuple[int | None, bool], dict[int, Pool]] = {}
        self._small = self._streams_of(None, True)
        self._large = self._streams_of(None, False)
        self._capturing: int | None = None
        self._released_pools: set[int] = set()
        self._pending: list[tuple[int, Block]] = []
        self._heads: dict[int, Block] = {}
        self._next_address = SMALL_SEGMENT_BYTES
        self.allocated_bytes = self.reserved_bytes = self.requested_bytes = self._split_bytes = 0
        self.peak_allocated_bytes = self.peak_reserved_bytes = 0
        self.num_segments = self.num_retries = 0
        self.reset_peak()

    # Requests.

    def allocate(self, requested: int, stream: int = 0) -> Block:
        """Return a live block of at least `requested` bytes. Raises: DeviceFull."""
        size = self.rounded(requested) if self._divisions else (requested + _BELOW) & _WHOLE or ROUND_BYTES
        streams = self._small if size <= SMALL_REQUEST_BYTES else self._large
        pool = streams.get(stream) or self._new_pool(streams, stream)
        keys = pool.keys
        index = bisect_left(keys, size << ADDRESS_BITS)
        if not self._is_plain:
            index = self._chosen(pool, size, index)
        if index < len(keys):
            block = pool.blocks[index]
            del keys[index], pool.blocks[index]
            block.is_free = False
        else:
            block = self._grow(pool, size)
        after = block.after
        was_split = after is not None or block.before is not None
        rest = block.size - size
        if rest >= pool.least_rest and (self._is_plain or self._may_split(pool, size)):
            other = block.after = Block(rest, block.start + size, pool, block, after)
            if after is not None:
                after.before = other
            block.size = size
            pool.add(other)
            self._split_bytes += -size if was_split else rest
        else:
            size = block.size
            if was_split:
                self._split_bytes -= size
        block.requested = requested
        self.requested_bytes += requested
        self.allocated_bytes += size
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.reset_peak(keep_reserved=True)
        return block

    def free(self, block: Block) -> None:
        """Give a live block back to the cache."""
        self.allocated_bytes -= block.size
        self._cache(block)

    def free_later(self, block: Block, ready: int) -> None:
        """Give a live block back once other streams are done with it: when `advance` reaches `ready`."""
        self.allocated_bytes -= block.size
        self._pending.append((ready, block))

    def advance(self, now: int) -> None:
        """Let the time of other streams' work come to `now`; what they are done with becomes free.

        During a capture nobody may ask a stream how far it is, and everything waits.
        """
        if self._pending and self._capturing is None:
            done = [block for ready, block in self._pending if ready <= now]
            self._pending = [entry for entry in self._pending if entry[0] > now]
            self._finish(done)

    def empty_cache(self) -> None:
        """Return to the device every segment that holds nothing, as torch.cuda.empty_cache does outside of captures."""
        if self._capturing is None:
            self._release_cached()

    def rounded(self, requested: int) -> int:
        """A request rounded to 512 bytes, or to steps of its power of two where it is large enough for that many."""
        if self._divisions and requested >= ROUND_BYTES:
            power = requested.bit_length() - 1
            divisions = self._divisions[min(max(power - (MIB.bit_length() - 1), 0), NUM_INTERVALS - 1)]
            if divisions > 1 and requested > ROUND_BYTES * divisions:
                return round_up(requested, (1 << power) // divisions)
        return round_up(requested, ROUND_BYTES) or ROUND_BYTES

    def segment_bytes(self, size: int) -> int:
        """The segment that is taken for a request of `size` rounded bytes."""
        if size <= SMALL_REQUEST_BYTES:
            return SMALL_SEGMENT_BYTES
        return self.settings.large_segment_bytes if size < OWN_SEGMENT_BYTES else round_up(size, SMALL_SEGMENT_BYTES)

    # Graph capture.

    def begin_pool(self, number: int) -> None:
        """Serve requests from the private pool `number` from here on: what a graph captures must not move."""
        self._capturing = number
        self._small = self._streams_of(number, True)
        self._large = self._streams_of(number, False)

    def end_pool(self) -> None:
        """Serve requests from the common pools again."""
        self._capturing = None
        self._small = self._streams_of(None, True)
        self._large = self._streams_of(None, False)

    def release_pool(self, number: int) -> None:
        """The last graph of a private pool is gone: its segments may be returned when memory is short."""
        self._released_pools.add(number)

    # What is held.

    @property
    def inactive_split_bytes(self) -> int:
        """Free bytes that a live neighbour in their segment keeps from being returned."""
        return self._split_bytes

    @property
    def peak_inactive_split_bytes(self) -> int:
        """The same at the peak of allocated bytes."""
        return self._split_at_peak_bytes

    @property
    def free_bytes(self) -> int:
        """What is left of the device; 0 where nothing limits it."""
        return max(self._room - self.reserved_bytes, 0) if self._room < _NO_LIMIT else 0

    def reset_peak(self, *, keep_reserved: bool = False) -> None:
        """Make this moment the peak of allocated bytes, and of reserved bytes too unless they are to be kept."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_requested_bytes = self.requested_bytes
        self.reserved_at_peak_bytes = self.reserved_bytes
        self._split_at_peak_bytes = self._split_bytes
        if not keep_reserved:
            self.peak_reserved_bytes = self.reserved_bytes

    def segments(self) -> Iterator[list[Block]]:
        """Each segment as its blocks, by address; unmapped ones are left out."""
        for start in sorted(self._heads):
            blocks: list[Block] = []
            block: Block | None = self._heads[start]
            while block is not None:
                if block.is_mapped:
                    blocks.append(block)
                elif blocks:
                    yield blocks
                    blocks = []
                block = block.after
            if blocks:
                yield blocks

    # From here on nothing is for callers.

    def _streams_of(self, owner: int | None, is_small: bool) -> dict[int, Pool]:
        return self._pools.setdefault((owner, is_small), {})

    def _new_pool(self, streams: dict[int, Pool], stream: int) -> Pool:
        clock = next((pool.clock for pool in streams.values()), [0])
        pool = streams[stream] = Pool(
            is_small=streams is self._small,
            stream=stream,
            owner=self._capturing,
            clock=clock,
            splits_all=self.splits_all,
        )
        return pool

    def _chosen(self, pool: Pool, size: int, index: int) -> int:
        """Which free block serves a request, where the smallest one at `index` may not; past the end for none."""
        none = len(pool.keys)
        pool.clock[0] += self._collects
        if index == none:
            return none
        found = pool.blocks[index].size
        if size < self._limit <= found:
            return none
        if size >= self._limit and found >= size + self.settings.non_split_rounding_bytes:
            return none
        return index

    def _may_split(self, pool: Pool, size: int) -> bool:
        return pool.is_small or size < self._limit

    def _cache(self, block: Block) -> None:
        """Merge a block with its free neighbours and put what comes of it in the pool."""
        self.requested_bytes -= block.requested
        pool = block.pool
        other = block.after
        if other is not None and other.is_free:
            pool.remove(other)
            self._split_bytes -= other.size
            block.size += other.size
            block.after = after = other.after
            if after is not None:
                after.before = block
        other = block.before
        if other is not None and other.is_free:
            pool.remove(other)
            self._split_bytes -= other.size
            other.size += block.size
            other.after = after = block.after
            if after is not None:
                after.before = other
            block = other
        pool.add(block)
        if block.after is not None or block.before is not None:
            self._split_bytes += block.size

    def _grow(self, pool: Pool, size: int) -> Block:
        """A block of at least `size` bytes that was not cached, whatever must be returned to the device for it."""
        if self._collects:
            self._collect_garbage()
        block = self._extend(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._extend(pool, size)
        if block is None and self._capturing is None:
            self._release_cached()
            self.num_retries += 1
            block = self._extend(pool, size)
        if block is None:
            raise DeviceFull(
                wanted_bytes=self.segment_bytes(size),
                free_bytes=self.free_bytes,
                capacity_bytes=self.capacity_bytes or 0,
                allocated_bytes=self.allocated_bytes,
                reserved_bytes=self.reserved_bytes,
            )
        return block

    def _extend(self, pool: Pool, size: int) -> Block | None:
        """A new segment as one block, or None where the device has no room for it."""
        length = self.segment_bytes(size)
        if self.reserved_bytes + length > min(self._allowed, self._room):
            return None
        block = Block(length, self._address_for(length), pool, None, None)
        self._heads[block.start] = block
        self._reserve(block.start, length, pool)
        self.num_segments += 1
        return block

    def _address_for(self, length: int) -> int:
        """Where a new segment lies: above all others."""
        start = self._next_address
        self._next_address += round_up(length, SMALL_SEGMENT_BYTES)
        return start

    def _reserve(self, start: int, change: int, pool: Pool) -> None:
        self.reserved_bytes += change
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        if self.on_reserve is not None:
            self.on_reserve(start, change, pool)

    def _release(self, block: Block) -> None:
        """Return the segment that this free block fills."""
        block.pool.remove(block)
        del self._heads[block.start]
        self._reserve(block.start, -block.size, block.pool)
        self.num_segments -= 1

    def _releasable_pools(self) -> Iterator[Pool]:
        """The pools whose segments may be returned: the common ones, and the private ones that no graph needs."""
        for owner in (None, *sorted(self._released_pools)):
            for is_small in (False, True):
                yield from self._pools.get((owner, is_small), {}).values()

    def _synchronize(self) -> None:
        """Wait for all that other streams still use."""
        waiting, self._pending = self._pending, []
        self._finish([block for _, block in waiting])

    def _finish(self, blocks: list[Block]) -> None:
        for block in blocks:
            if self.on_ready is not None:
                self.on_ready(block)
            self._cache(block)

    def _release_cached(self) -> None:
        self._synchronize()
        for pool in self._releasable_pools():
            for block in list(pool.blocks):
                if block.before is None and block.after is None:
                    self._release(block)

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Return the smallest oversize block that would do, or the largest ones until enough is free."""
        if self._limit == _NO_LIMIT:
            return False
        wanted = max(size, self._limit)
        index = bisect_left(pool.keys, wanted << ADDRESS_BITS)
        if index < len(pool.keys):
            self._release(pool.blocks[index])
            return True
        released = 0
        while pool.blocks and released < wanted and pool.blocks[-1].size >= self._limit:
            released += pool.blocks[-1].size
            self._release(pool.blocks[-1])
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Return large segments that nothing used for longest, until the process is below its threshold."""
        target = self.reserved_bytes - int(self.settings.gc_threshold * self._allowed)
        pools = self._pools[None, False]
        free = [block for _, pool in sorted(pools.items()) for block in pool.blocks if not block.is_split]
        while target > 0 and free:
            ages = [block.pool.clock[0] - block.freed_at for block in free]
            mean = sum(ages) / len(ages)
            old = [block for block, age in zip(free, ages, strict=True) if age >= mean]
            for block in old:
                target -= block.size
                self._release(block)
            free = [block for block, age in zip(free, ages, strict=True) if age < mean]
