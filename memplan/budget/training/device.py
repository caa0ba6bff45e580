"""The memory of one rank during a step, as a list of allocations and frees, and what is read off it afterwards.

Sizes are bytes, rounded up to the allocator's blocks of 512. A step of a 70B is some ten thousand events.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, pairwise

from memplan.budget.allocator import ROUND_BYTES
from memplan.records import dataclass

Held = dict[tuple[str, str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseHeld:
    """One phase: the most that was allocated in it, what that was, by (category, name), and what is left at its end."""

    name: str
    peak_bytes: int
    after_bytes: int
    held: Held


def block_bytes(size_bytes: float) -> int:
    """What the allocator makes of a size."""
    return -(-round(size_bytes) // ROUND_BYTES) * ROUND_BYTES


class Block:
    """One allocation: freed when the last of those who hold it lets go."""

    __slots__ = ("category", "holders", "name", "number", "size_bytes", "stream")

    def __init__(self, number: int, size_bytes: int, category: str, name: str, stream: int) -> None:
        self.number = number
        self.size_bytes = size_bytes
        self.category = category
        self.name = name
        self.stream = stream
        self.holders = 1


class Device:
    """Takes and frees blocks, and remembers the order."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._events: list[int] = []  # n: block n is taken, ~n: it is freed
        self._phases: list[tuple[str, int]] = []
        self.marks: list[int] = []
        self.allocated_bytes = 0

    @classmethod
    def made_of(cls, blocks: list[Block], events: list[int], phases: list[tuple[str, int]], marks: list[int]) -> Device:
        """A device on which all this has happened. Blocks may stand for several equal ones: an event's number is their
        place in the list.
        """
        device = cls()
        device.blocks, device._events, device._phases, device.marks = blocks, events, phases, marks
        return device

    @property
    def starts(self) -> tuple[int, ...]:
        """After how many events each phase begins."""
        return tuple(start for _, start in self._phases)

    def begin(self, phase: str) -> None:
        """What follows belongs to this phase."""
        self._phases.append((phase, len(self._events)))

    def mark(self) -> None:
        """Remember this moment: the end of a layer's forward or backward pass."""
        self.marks.append(len(self._events))

    def take(self, size_bytes: float, category: str, name: str, stream: int = 0) -> Block:
        """Allocate. A size of 0 takes nothing, and is still a block that can be freed.

        stream: blocks of one stream are not used again on another.
        """
        blocks = self.blocks
        number = len(blocks)
        rounded_bytes = -(-round(size_bytes) // ROUND_BYTES) * ROUND_BYTES  # as block_bytes, which is one call more
        block = Block(number, rounded_bytes, category, name, stream)
        blocks.append(block)
        self._events.append(number)
        self.allocated_bytes += rounded_bytes
        return block

    def share(self, block: Block) -> Block:
        """One more holder."""
        block.holders += 1
        return block

    def free(self, block: Block) -> None:
        """One holder less; the last one frees the block."""
        block.holders -= 1
        if block.holders == 0:
            self._events.append(~block.number)
            self.allocated_bytes -= block.size_bytes

    @property
    def position(self) -> int:
        """This moment, as a number of events."""
        return len(self._events)

    def undo(self, start: int) -> None:
        """Leave out what was taken since `start` and is freed by now."""
        since = self._events[start:]
        gone = {~number for number in since if number < 0} & set(since)
        self._events[start:] = [number for number in since if number not in gone and ~number not in gone]

    def swap(self, start: int, middle: int) -> None:
        """Let what happened since `middle` have happened before what did between `start` and `middle`."""
        self._events[start:] = self._events[middle:] + self._events[start:middle]

    def events(self) -> tuple[int, ...]:
        """Every allocation as the number of its block, every free as its complement."""
        return tuple(self._events)

    def phases(self, cuts: Iterable[int] = (), *, with_held: bool = True) -> tuple[PhaseHeld, ...]:
        """Each phase with its peak. At the moments in `cuts` a phase is cut into parts of the same name.

        What is alive at the peaks is left out without `with_held`, which is quicker.
        """
        parts = sorted([*((start, name) for name, start in self._phases), *((cut, "") for cut in cuts)])
        starts = [start for start, _ in parts] + [len(self._events)]
        peaks = self._peaks(starts)
        held: list[Held] = [{}] * len(peaks)
        if with_held:
            held = self._held_at([moment for moment, _, _ in peaks])
        found: list[PhaseHeld] = []
        for (_, begun), (_, peak, after), each in zip(parts, peaks, held, strict=True):
            name = begun or found[-1].name
            found.append(PhaseHeld(name=name, peak_bytes=peak, after_bytes=after, held=each))
        return tuple(found)

    def _peaks(self, starts: list[int]) -> list[tuple[int, int, int]]:
        """For each phase the event after which most is allocated, how much that is, and what is left at the end."""
        found: list[tuple[int, int, int]] = []
        level = 0
        # The complement of n, read from the end of a list, is n once more.
        sizes = [each.size_bytes for each in self.blocks]
        sizes += [-size for size in reversed(sizes)]
        for start, end in pairwise(starts):
            levels = list(accumulate([sizes[number] for number in self._events[start:end]], initial=level))
            peak = max(levels)
            found.append((start + levels.index(peak), peak, levels[-1]))
            level = levels[-1]
        return found

    def _held_at(self, moments: list[int]) -> list[Held]:
        """What is alive after so many events, by category and name; the moments rise."""
        found: list[Held] = []
        alive: Held = {}
        position = 0
        for moment in moments:
            for number in self._events[position:moment]:
                block = self.blocks[number if number >= 0 else ~number]
                key = (block.category, block.name)
                alive[key] = alive.get(key, 0) + (block.size_bytes if number >= 0 else -block.size_bytes)
            position = moment
            found.append({key: size for key, size in alive.items() if size})
        return found
