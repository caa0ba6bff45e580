"""A trace as it would be with a KV cache that is made once, at its full length, before the pass that fills it."""

from __future__ import annotations

from memplan.domain.timeline import CATEGORIES
from memplan.profile.events import EventLog

_CACHE = CATEGORIES.index("kv_cache")


class _Group:
    """The cache tensors of one module that follow each other without a break, from allocation `first` on."""

    __slots__ = ("first", "grows", "has_freed", "largest_bytes", "num_live", "number")

    def __init__(self, first: int) -> None:
        self.first = first
        self.grows = self.has_freed = False
        self.largest_bytes = 0
        self.num_live = 0
        self.number = -1


def with_cache_pool(log: EventLog) -> EventLog | None:
    """Return the trace with every module's growing cache in one buffer; None where none grows.

    A buffer is made at the start of the phase in which the module's first cache tensor was, as large as all that it
    holds at its fullest, and freed with the last of them.
    """
    groups = _cache_groups(log)
    growing = {id(group): group for group in groups.values() if group.grows}
    if not growing:
        return None
    pooled = EventLog()
    numbers: dict[int, int] = {}
    made = 0
    for mark, start, stop in log.spans():
        pooled.begin(mark.phase, mark.iteration)
        events = log.order[start:stop]
        until = made + sum(1 for event in events if event > 0)
        for group in growing.values():
            if made <= group.first < until:
                label = log.labels[log.label_of[group.first]]
                group.number = pooled.allocate(group.largest_bytes, label, "kv_cache", log.stream_of[group.first])
        made = until
        for event in events:
            _copy(log, pooled, event, groups, numbers)
    return pooled


def _copy(log: EventLog, pooled: EventLog, event: int, groups: dict[int, _Group], numbers: dict[int, int]) -> None:
    """Write one event, unless it is about what lies in a buffer; a buffer goes with the last that it holds."""
    number = event - 1 if event > 0 else ~event
    group = groups.get(number)
    if group is not None and group.grows:
        group.num_live += 1 if event > 0 else -1
        if group.num_live == 0:
            pooled.free(group.number)
    elif event > 0:
        label = log.labels[log.label_of[number]]
        numbers[number] = pooled.allocate(log.sizes[number], label, log.category(number), log.stream_of[number])
    else:
        pooled.free(numbers[number])


def _cache_groups(log: EventLog) -> dict[int, _Group]:
    """The group of every allocation that is cache. A group ends when nothing of its module's cache is alive."""
    groups: dict[int, _Group] = {}
    now: dict[str, _Group] = {}
    kept: dict[str, dict[int, int]] = {}
    for event in log.order:
        number = event - 1 if event > 0 else ~event
        if log.category_of[number] != _CACHE:
            continue
        module = log.labels[log.label_of[number]].module
        if event > 0:
            if not kept.get(module):
                now[module], kept[module] = _Group(number), {}
            group = groups[number] = now[module]
            group.grows = group.grows or group.has_freed
            kept[module][number] = log.sizes[number]
        else:
            group = groups[number]
            group.has_freed = True
            # While one tensor is copied into a longer one both are there: only what is left counts as held.
            kept[module].pop(number)
            group.largest_bytes = max(group.largest_bytes, sum(kept[module].values()))
    for module, group in now.items():
        group.largest_bytes = max(group.largest_bytes, sum(kept[module].values()))
    return groups
