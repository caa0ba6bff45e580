"""The segments and blocks of one device, moved back and forth along the history of a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memplan.budget.allocator import LARGE_SEGMENT_BYTES, SMALL_SEGMENT_BYTES
from memplan.errors import CorruptFile
from memplan.records import dataclass
from memplan.units import format_gib

# Expandable segments are mapped in multiples of this, whatever their pool.
_PAGE = SMALL_SEGMENT_BYTES
_MOST_PAGES = 1 << 20
_GROWS = {"segment_alloc": False, "segment_map": True}
_SHRINKS = {"segment_free": False, "segment_unmap": True}


@dataclass(frozen=True, slots=True)
class Entry:
    """One step of the history: what was done, to which address, how many bytes (those asked for, of a block), and on
    which stream, which is known by the address of CUDA's own."""

    action: str
    address: int
    size_bytes: int
    stream: int = 0


class Device:
    """What a device holds: whole segments by address, pages of expandable segments, and blocks in use by address."""

    def __init__(self) -> None:
        self.segments: dict[int, int] = {}
        self.pages: set[int] = set()
        self.blocks: dict[int, int] = {}

    @property
    def reserved_bytes(self) -> int:
        """What the allocator holds of the device."""
        return sum(self.segments.values()) + len(self.pages) * _PAGE

    def changes(self, entry: Entry) -> bool:
        """Whether an entry takes memory of the device or returns it."""
        return entry.action in _GROWS or entry.action in _SHRINKS

    def copy(self) -> Device:
        """The same state, to be moved on its own."""
        other = Device()
        other.segments, other.pages, other.blocks = dict(self.segments), set(self.pages), dict(self.blocks)
        return other

    def add(self, address: int, size_bytes: int, *, is_expandable: bool) -> None:
        """A segment, or a stretch of an expandable one, is there. Raises: CorruptFile."""
        if not is_expandable:
            self.segments[address] = size_bytes
            return
        if size_bytes > _MOST_PAGES * _PAGE or len(self.pages) > _MOST_PAGES:
            raise CorruptFile(f"not a memory snapshot: a device with more than {format_gib(_MOST_PAGES * _PAGE)}")
        self.pages.update(range(address, address + size_bytes, _PAGE))

    def remove(self, address: int, size_bytes: int, *, is_expandable: bool) -> None:
        """A segment, or a stretch of an expandable one, is not there."""
        if not is_expandable:
            self.segments.pop(address, None)
        elif size_bytes <= _MOST_PAGES * _PAGE:
            self.pages.difference_update(range(address, address + size_bytes, _PAGE))

    def apply(self, entry: Entry) -> None:
        """Do what an entry did to the segments."""
        if entry.action in _GROWS:
            self.add(entry.address, entry.size_bytes, is_expandable=_GROWS[entry.action])
        elif entry.action in _SHRINKS:
            self.remove(entry.address, entry.size_bytes, is_expandable=_SHRINKS[entry.action])

    def undo(self, entry: Entry) -> None:
        """Take back what an entry did to the segments."""
        if entry.action in _GROWS:
            self.remove(entry.address, entry.size_bytes, is_expandable=_GROWS[entry.action])
        elif entry.action in _SHRINKS:
            self.add(entry.address, entry.size_bytes, is_expandable=_SHRINKS[entry.action])

    def inactive_split_bytes(self) -> int:
        """Free bytes that cannot be returned: beside a block in its segment, or in a page that a block shares."""
        blocks = sorted(self.blocks.items())
        total, index = 0, 0
        for start, size, page in sorted(self._stretches()):
            used: dict[int, int] = {}
            while index < len(blocks) and blocks[index][0] < start:
                index += 1
            while index < len(blocks) and blocks[index][0] < start + size:
                address, length = blocks[index]
                _spread(used, (address - start, min(address - start + length, size)), page)
                index += 1
            total += sum(min(page, size - number * page) - held for number, held in used.items())
        return max(total, 0)

    def _stretches(self) -> Iterator[tuple[int, int, int]]:
        """Address, length, and the length of the parts that can be returned alone."""
        for start, size in self.segments.items():
            yield start, size, size
        for start, size in _joined(sorted(self.pages)):
            yield start, size, LARGE_SEGMENT_BYTES if size % LARGE_SEGMENT_BYTES == 0 else _PAGE


def _joined(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring pages as one stretch: address and length."""
    start = end = -1
    for page in pages:
        if page != end:
            if end > start:
                yield start, end - start
            start = page
        end = page + _PAGE
    if end > start:
        yield start, end - start


def _spread(used: dict[int, int], block: tuple[int, int], page: int) -> None:
    """Count the bytes of a block (start, stop) in each of the pages that it touches."""
    start, stop = block
    for number in range(start // page, -(-stop // page)):
        inside = min(stop, (number + 1) * page) - max(start, number * page)
        used[number] = used.get(number, 0) + inside
