"""Steps of a trace that follow from the ones before them: decoding writes token after token in the same way.

A step of decoding makes and frees the same things in the same order as the step before, a little larger. Once three
steps in a row have shown that, and by how much, the rest is written from them instead of run.
"""

from __future__ import annotations

from memplan.profile.events import EventLog
from memplan.records import dataclass, replace


@dataclass(frozen=True, slots=True)
class Step:
    """Events `order[start:stop]` of a trace, in which allocations from number `first` up to `end` are made."""

    start: int
    stop: int
    first: int
    end: int


def are_alike(log: EventLog, steps: tuple[Step, Step, Step]) -> bool:
    """Whether three steps in a row differ only in sizes, and by the same amounts from one to the next."""
    shapes = [_shape(log, step) for step in steps]
    if shapes[0] is None or not shapes[0] == shapes[1] == shapes[2]:
        return False
    one, two, three = (log.sizes[step.first : step.end] for step in steps)
    return all(2 * middle == before + after for before, middle, after in zip(one, two, three, strict=True))


def write_steps(log: EventLog, before: Step, last: Step, distances: list[int]) -> dict[int, int]:
    """Append one step for each of `distances`, that many steps after `last`, and return where numbers moved to.

    What of `last` is still alive in the running model stands for what the final step made: the answer maps the numbers
    of `last` to those of the final step.
    """
    count = last.end - last.first
    grown = [
        later - earlier
        for earlier, later in zip(log.sizes[before.first : before.end], log.sizes[last.first : last.end], strict=True)
    ]
    base = last.first
    for distance in distances:
        first = len(log.sizes)
        is_final = distance == distances[-1]
        for event in log.order[last.start : last.stop]:
            if event > 0:
                index = event - 1 - last.first
                label = log.label_of[last.first + index]
                if is_final and grown[index]:
                    label = _grown_label(log, before.first + index, last.first + index, distance)
                number = log.allocate_as(log.sizes[last.first + index] + grown[index] * distance, label)
                log.category_of[number] = log.category_of[last.first + index]
            else:
                index = -event - 1 - last.first
                log.free(first + index if index >= 0 else base + count + index)
        base = first
    return {last.first + index: base + index for index in range(count)}


def spread(steps: int, most: int) -> list[int]:
    """Distances of at most `most` steps that stand for `steps`, evenly spread, the final one among them."""
    count = min(steps, most)
    return [steps * (index + 1) // count for index in range(count)]


def _shape(log: EventLog, step: Step) -> list[tuple[int, int]] | None:
    """Each event as what it is and what it is about, relative to its step; None if it frees what is older than the
    step before.
    """
    count = step.end - step.first
    shape = []
    for event in log.order[step.start : step.stop]:
        if event > 0:
            label = log.labels[log.label_of[event - 1]]
            shape.append((1, hash((label.module, label.operator, label.where))))
        else:
            index = -event - 1 - step.first
            if index < -count:
                return None
            shape.append((-1, index))
    return shape


def _grown_label(log: EventLog, before: int, last: int, distance: int) -> int:
    """The label of an allocation `distance` steps on, with the shape that it has by then."""
    earlier, later = log.labels[log.label_of[before]], log.labels[log.label_of[last]]
    shape = tuple(new + (new - old) * distance for old, new in zip(earlier.shape, later.shape, strict=False))
    return log.label_number(replace(later, shape=shape))
