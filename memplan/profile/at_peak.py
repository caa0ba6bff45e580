"""All that was alive at the fullest moment of a run, by category, module and operator: what a flame is drawn of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memplan.budget.allocator import ROUND_BYTES
from memplan.domain.timeline import CATEGORIES, ModuleShare, Phase
from memplan.profile.alive import module_pattern
from memplan.profile.events import EventLog
from memplan.units import round_up


def shares_at_peak(log: EventLog, phases: Iterable[Phase]) -> tuple[ModuleShare, ...]:
    """Return what was alive when tensors held most during any of `phases`, the largest first.

    Modules that differ only in numbers are counted together.
    """
    stop = fullest_step(log, frozenset(phases))
    if stop is None:
        return ()
    patterns = {number: module_pattern(label.module) for number, label in enumerate(log.labels)}
    sizes: dict[tuple[int, str, str], int] = {}
    modules: dict[tuple[int, str, str], set[str]] = {}
    for number in live_at(log, stop):
        label = log.labels[log.label_of[number]]
        key = (log.category_of[number], patterns[log.label_of[number]], label.operator)
        sizes[key] = sizes.get(key, 0) + round_up(log.sizes[number], ROUND_BYTES)
        modules.setdefault(key, set()).add(label.module)
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        ModuleShare(
            category=CATEGORIES[key[0]], module=key[1], operator=key[2], size_bytes=size, count=len(modules[key])
        )
        for key, size in ordered
    )


def fullest_step(log: EventLog, phases: frozenset[Phase]) -> int | None:
    """The number of events after which tensors hold most, within some phases; None where none of them ran."""
    level, best, found = 0, -1, None
    position = 0
    for mark, start, stop in log.spans():
        level += sum(_changes(log, position, start))
        position = start
        if mark.phase not in phases:
            continue
        for at, change in enumerate(_changes(log, start, stop), start=start + 1):
            level += change
            if level > best:
                best, found = level, at
        position = stop
    return found


def _changes(log: EventLog, start: int, stop: int) -> Iterator[int]:
    sizes = log.sizes
    return (sizes[event - 1] if event > 0 else -sizes[~event] for event in log.order[start:stop])


def live_at(log: EventLog, step: int) -> list[int]:
    """The allocations that are alive after so many events, in the order they were made."""
    live: dict[int, None] = {}
    for event in log.order[:step]:
        if event > 0:
            live[event - 1] = None
        else:
            del live[~event]
    return list(live)
