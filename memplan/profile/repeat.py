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
    sizes = log.sizes[last.first : last.end]
    grown = [later - earlier for earlier, later in zip(log.sizes[before.first : before.end], sizes, strict=True)]
    labels, categories = log.label_of[last.first : last.end], log.category_of[last.first : last.end]
    streams = log.stream_of[last.first : last.end]
    events = log.order[last.start : last.stop]
    for distance in distances:
        shift = len(log.sizes) - last.first
        log.sizes.extend([size + step * distance for size, step in zip(sizes, grown, strict=True)])
        is_seen = distance in distances[-2:]  # a peak in the final step finds some of the one before still there
        log.label_of.extend(_grown_labels(log, before, last, distance) if is_seen else labels)
        log.category_of.extend(categories)
        log.stream_of.extend(streams)
        # Steps follow each other at once, so that what one frees of the step before it is as far back in every one.
        log.order.extend([event + shift if event > 0 else event - shift for event in events])
    base = len(log.sizes) - count
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


def _grown_labels(log: EventLog, before: Step, last: Step, distance: int) -> list[int]:
    """Labels of a step `distance` steps on, with the shapes that its allocations have by then."""
    numbers = []
    for old, new in zip(range(before.first, before.end), range(last.first, last.end), strict=True):
        earlier, later = log.labels[log.label_of[old]], log.labels[log.label_of[new]]
        if earlier.shape != later.shape and len(earlier.shape) == len(later.shape):
            pairs = zip(earlier.shape, later.shape, strict=True)
            later = replace(later, shape=tuple(axis + (axis - was) * distance for was, axis in pairs))
        numbers.append(log.label_number(later))
    return numbers
