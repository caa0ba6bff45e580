"""A trace of allocations and frees, as every recorder writes it and the allocator simulator replays it.

Allocations are numbered from 0 in the order they were asked for. What describes one (module, operator, line of code)
is a label, shared by all that look alike; what it is for (its category) may be learnt later than it was made, and so is
kept by number. Torch is not known here: a trace can come from a model on the meta device, from a real run, from a
PyTorch snapshot, or from a file.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from memplan.domain.timeline import CATEGORIES, Category, Phase
from memplan.records import dataclass, field

_UNKNOWN = CATEGORIES.index("unknown")


@dataclass(frozen=True, slots=True)
class Label:
    """What allocations that look alike have in common. The fields are those of `domain.timeline.LiveTensor`."""

    module: str = ""
    operator: str = ""
    where: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A phase begins at the event with number `position` (an index into `EventLog.order`)."""

    position: int
    phase: Phase
    iteration: int = 0


@dataclass(slots=True)
class EventLog:
    """A trace. `order` holds `i + 1` where allocation i is made and `-(i + 1)` where it is freed.

    `sizes` (bytes asked for), `label_of`, `category_of` (index into CATEGORIES) and `stream_of` are by allocation;
    `marks` are in order of position. Sizes of 0 are left out by recorders. `ready_at` names, for an allocation that
    other streams used as well (`record_stream`), the position by which they are done with it: freed earlier, it is not
    used again before. `emptied` are the positions at which torch.cuda.empty_cache was called. `holders` says of
    allocations that stayed who held them, where somebody looked.
    """

    sizes: array[int] = field(default_factory=lambda: array("q"))
    label_of: array[int] = field(default_factory=lambda: array("l"))
    category_of: bytearray = field(default_factory=bytearray)
    stream_of: bytearray = field(default_factory=bytearray)
    order: array[int] = field(default_factory=lambda: array("q"))
    labels: list[Label] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    ready_at: dict[int, int] = field(default_factory=dict)
    emptied: list[int] = field(default_factory=list)
    holders: dict[int, str] = field(default_factory=dict)
    _numbers: dict[Label, int] = field(default_factory=dict)

    def begin(self, phase: Phase, iteration: int = 0) -> None:
        """Start a phase here."""
        self.marks.append(Mark(len(self.order), phase, iteration))

    def allocate(self, size_bytes: int, label: Label, category: Category | None = None, stream: int = 0) -> int:
        """Note an allocation and return its number."""
        return self.allocate_as(size_bytes, self.label_number(label), category, stream)

    def label_number(self, label: Label) -> int:
        """The number of a label: recorders that see the same one often keep it, and allocate by it."""
        known = self._numbers.get(label)
        if known is None:
            known = self._numbers[label] = len(self.labels)
            self.labels.append(label)
        return known

    def allocate_as(self, size_bytes: int, label_number: int, category: Category | None = None, stream: int = 0) -> int:
        """Note an allocation under a label that has a number, and return its own."""
        number = len(self.sizes)
        self.sizes.append(size_bytes)
        self.label_of.append(label_number)
        self.category_of.append(_UNKNOWN if category is None else CATEGORIES.index(category))
        self.stream_of.append(stream)
        self.order.append(number + 1)
        return number

    def free(self, number: int) -> None:
        """Note that allocation `number` is freed."""
        self.order.append(-(number + 1))

    def used_until(self, number: int, position: int) -> None:
        """Note that another stream uses allocation `number` until the event with number `position`."""
        self.ready_at[number] = max(position, self.ready_at.get(number, 0))

    def empty_cache(self) -> None:
        """Note that the cache is emptied here."""
        self.emptied.append(len(self.order))

    def classify(self, number: int, category: Category) -> None:
        """Say what an allocation is for, whenever that is learnt."""
        self.category_of[number] = CATEGORIES.index(category)

    def category(self, number: int) -> Category:
        """What an allocation is for."""
        return CATEGORIES[self.category_of[number]]

    def spans(self) -> Iterator[tuple[Mark, int, int]]:
        """Each phase with the events that it covers: `order[start:stop]`."""
        for index, mark in enumerate(self.marks):
            stop = self.marks[index + 1].position if index + 1 < len(self.marks) else len(self.order)
            yield mark, mark.position, stop
