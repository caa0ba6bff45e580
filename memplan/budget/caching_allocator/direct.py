"""No cache at all: every request is taken and returned as it is, as on the CPU."""

from __future__ import annotations

from memplan.budget.caching_allocator.blocks import Block, DeviceFull
from memplan.budget.caching_allocator.simulator import CachingAllocator


class DirectAllocator(CachingAllocator):
    """The allocator of a device that has none: what tensors asked for is allocated, and reserved, to the byte."""

    def allocate(self, requested: int, stream: int = 0) -> Block:
        """Return a live block of `requested` bytes. Raises: DeviceFull."""
        if requested > self.free_bytes and self.capacity_bytes is not None:
            raise DeviceFull(
                wanted_bytes=requested,
                free_bytes=self.free_bytes,
                capacity_bytes=self.capacity_bytes,
                allocated_bytes=self.allocated_bytes,
                reserved_bytes=self.reserved_bytes,
            )
        pool = self._small.get(stream) or self._new_pool(self._small, stream)
        self._change(requested)
        return Block(requested, 0, pool, None, None)

    def free(self, block: Block) -> None:
        """Return a block."""
        self._change(-block.size)

    def free_later(self, block: Block, ready: int) -> None:
        """Return a block: there are no streams to wait for."""
        self._change(-block.size)

    def _change(self, by: int) -> None:
        self.allocated_bytes += by
        self.requested_bytes = self.allocated_bytes
        self.reserved_bytes = self.allocated_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        if self.allocated_bytes > self.peak_allocated_bytes:
            self.reset_peak(keep_reserved=True)
