"""What ggml's graph allocator asks of every backend for one graph: the high-water mark of a best-fit allocation.

Every value of the graph is given memory when it is first needed and gives it back after its last reader. An operation
that may work in place takes over the memory of a source that nobody else reads and that has the same layout. A freed
block is used again by the value that fits it most closely; the last, endless block only when no other fits. So the
size is decided by which values live at the same time, and by how the gaps between them fit.

Source: ggml/src/ggml-alloc.c (ggml_gallocr_alloc_graph_impl, ggml_dyn_tallocr_alloc), b2354 to b10900.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.engines.llama_cpp.ggml_graph import Value
from memplan.units import round_up

# Operations whose result may take the place of a source.
IN_PLACE = frozenset(
    {
        *("add", "add_id", "clamp", "diag_mask_inf", "div", "fill", "log", "mul", "rms_norm", "rope", "scale"),
        *("soft_max", "sqr", "sqrt", "sub", "unary"),
    }
)
_ENDLESS = 1 << 62


class _Heap:
    """The free blocks of one backend, by address: [offset, size]. The last one has no end."""

    __slots__ = ("alignment", "blocks", "peak_bytes")

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.blocks: list[list[int]] = [[0, _ENDLESS]]
        self.peak_bytes = 0

    def take(self, size: int) -> int:
        """Return the offset of `size` bytes: the smallest block that holds them, of equal ones the last."""
        best = None
        for block in self.blocks[:-1]:
            if size <= block[1] and (best is None or block[1] <= best[1]):
                best = block
        if best is None:
            best = self.blocks[-1]
        offset = best[0]
        best[0] += size
        best[1] -= size
        if not best[1]:
            self.blocks.remove(best)
        self.peak_bytes = max(self.peak_bytes, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Free a range, merged with its neighbours."""
        blocks = self.blocks
        position = 0
        while position < len(blocks) and blocks[position][0] < offset:
            position += 1
        before = blocks[position - 1] if position else None
        after = blocks[position] if position < len(blocks) else None
        joins_before = before is not None and before[0] + before[1] == offset
        joins_after = after is not None and offset + size == after[0]
        if before is not None and joins_before:
            before[1] += size + (after[1] if after is not None and joins_after else 0)
            if joins_after:
                del blocks[position]
        elif after is not None and joins_after:
            after[0] = offset
            after[1] += size
        else:
            blocks.insert(position, [offset, size])


class _Slot:
    """What is known of one value: readers and views still to come, and where it lies."""

    __slots__ = ("children", "heap", "offset", "owned", "owner", "views")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self.children = 0
        self.views = 0
        self.owned = False
        self.heap = 0
        self.offset = 0


class _Allocation:
    def __init__(self, heaps: Sequence[_Heap], size_of: Callable[[Value, int], int]) -> None:
        self.heaps = heaps
        self.size_of = size_of

    def slot(self, value: Value) -> _Slot:
        found = value.lease
        if isinstance(found, _Slot) and found.owner is self:
            return found
        made = value.lease = _Slot(self)
        return made

    def size(self, value: Value, heap: int) -> int:
        return round_up(self.size_of(value, heap), self.heaps[heap].alignment)

    def place(self, value: Value, heap: int) -> None:
        """Give a value memory, its own or a source's, unless it has some."""
        if value.base is not None or value.device is not None:
            return
        slot = self.slot(value)
        if slot.owned:
            return
        slot.owned = True
        if value.op in IN_PLACE and self._reuse(value, slot, heap):
            return
        slot.heap = heap
        slot.offset = self.heaps[heap].take(self.size(value, heap))

    def _reuse(self, value: Value, slot: _Slot, heap: int) -> bool:
        """Take over the memory of a source. A source seen through a view is never taken: ggml does not own views."""
        for source in value.sources:
            owner = self.slot(source)
            if source.base is not None or not owner.owned or source.is_output or not _same_layout(value, source):
                continue
            if owner.children != 1 or owner.views:
                continue
            slot.heap, slot.offset = owner.heap, owner.offset
            owner.owned = False
            left = self.size(source, owner.heap) - self.size(value, heap)
            if left > 0:
                self.heaps[slot.heap].give(slot.offset + self.size(value, heap), left)
            return True
        return False

    def release(self, source: Value) -> None:
        """Count one reader of a source as done, and free what nobody needs any more."""
        slot = self.slot(source)
        slot.children -= 1
        if slot.children or slot.views:
            return
        if source.base is None:
            if slot.owned:
                self._free(source, slot)
            return
        base_slot = self.slot(source.base)
        base_slot.views -= 1
        if not base_slot.views and not base_slot.children and base_slot.owned:
            self._free(source.base, base_slot)

    def _free(self, value: Value, slot: _Slot) -> None:
        if value.is_output:
            return
        self.heaps[slot.heap].give(slot.offset, self.size(value, slot.heap))
        slot.owned = False


def _same_layout(one: Value, other: Value) -> bool:
    return one.type == other.type and one.shape == other.shape and one.strides == other.strides


def reserve(
    nodes: Sequence[tuple[Value, int]],
    leafs: Sequence[tuple[Value, int]],
    alignments: Sequence[int],
    size_of: Callable[[Value, int], int],
) -> list[int]:
    """Return the bytes that each backend must have for the graph.

    `nodes` and `leafs` come with the backend of each; `alignments` has one entry per backend; `size_of` says what a
    value takes on a backend.
    """
    heaps = [_Heap(alignment) for alignment in alignments]
    state = _Allocation(heaps, size_of)
    for leaf, heap in leafs:
        state.place(leaf, heap)
    for node, heap in nodes:
        if node.base is not None and node.op != "none":
            state.slot(node.base).views += 1
        if node.is_input:
            state.place(node, heap)
        for source in node.sources:
            state.slot(source).children += 1
            if source.is_input:
                state.place(source, heap)
    for node, heap in nodes:
        for source in node.sources:
            state.place(source, heap)
        state.place(node, heap)
        for source in node.sources:
            state.release(source)
    return [heap.peak_bytes for heap in heaps]
