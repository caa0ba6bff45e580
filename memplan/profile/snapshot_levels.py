"""The levels that a device had along the history of a snapshot, phase by phase, as a replay's first walk notes them."""

from __future__ import annotations

from itertools import accumulate

from memplan.domain.timeline import Level, OutOfMemory
from memplan.profile.passages import Passage, Walk
from memplan.profile.snapshot_history import History
from memplan.records import replace


def measured(history: History) -> tuple[Walk, OutOfMemory | None]:
    """Return each phase's levels before, at its peak and after, and where memory ran out."""
    log, held = history.log, history.held
    levels = _Levels(history)
    reserved = _reserved(history)
    peaks = [levels.highest(start, stop) for _, start, stop in log.spans()]
    levels.look_at({step for span, peak in zip(log.spans(), peaks, strict=True) for step in (*span[1:], peak)})
    passages = []
    made = history.first
    for (mark, start, stop), peak in zip(log.spans(), peaks, strict=True):
        first, made = made, made + sum(event > 0 for event in log.order[start:stop])
        before, after = levels.at(start), levels.at(stop)
        within = [size for number, size in reserved if first <= number < made]
        passages.append(
            Passage(
                mark=mark,
                start=start,
                stop=stop,
                first=first,
                last=made,
                before=before,
                peak=levels.at(peak),
                after=after,
                peak_reserved_bytes=max(before.reserved_bytes, after.reserved_bytes, *within, 0),
            )
        )
    out = history.out_of_memory
    if out is not None:
        out = replace(out, phase=log.marks[-1].phase)
    return Walk(passages=passages, held=held, blocks=[], reserved=reserved, stop=len(log.order)), out


class _Levels:
    """The device's level after any number of events; what is split only where it was looked at."""

    def __init__(self, history: History) -> None:
        log, held = history.log, history.held
        self._history = history
        self._allocated = list(
            accumulate((held[event - 1] if event > 0 else -held[~event] for event in log.order), initial=0)
        )
        self._requested = list(
            accumulate((log.sizes[event - 1] if event > 0 else -log.sizes[~event] for event in log.order), initial=0)
        )
        self._seen: dict[int, tuple[int, int]] = {}

    def highest(self, start: int, stop: int) -> int:
        """The first step at which tensors held most."""
        return self._allocated.index(max(self._allocated[start : stop + 1]), start)

    def at(self, step: int) -> Level:
        """The level at a step that was looked at."""
        reserved, inactive = self._seen[step]
        return Level(
            allocated_bytes=self._allocated[step],
            reserved_bytes=reserved,
            inactive_split_bytes=inactive,
            requested_bytes=self._requested[step],
        )

    def look_at(self, steps: set[int]) -> None:
        """Move a device along the history, and note what it holds at some steps."""
        history = self._history
        device, number, begin = history.device.copy(), history.first, 0
        device.blocks = {made.address: history.held[index] for index, made in enumerate(history.before)}
        for step in sorted(steps):
            end = self._end(step)
            for entry in history.entries[begin:end]:
                if entry.action == "alloc":
                    device.blocks[entry.address] = history.held[number]
                    number += 1
                elif entry.action == "free_completed":
                    device.blocks.pop(entry.address, None)
                else:
                    device.apply(entry)
            begin = max(begin, end)
            self._seen[step] = (device.reserved_bytes, device.inactive_split_bytes())

    def _end(self, step: int) -> int:
        """How many steps of the history lie before a number of events; the last event has all that follow it."""
        history = self._history
        if step == len(history.log.order):
            return len(history.entries)
        return history.entry_of[step - history.first - 1] + 1 if step > history.first else 0


def _reserved(history: History) -> list[tuple[int, int]]:
    """The reserved bytes before the first step, and with the number of the next allocation at each change."""
    device, number = history.device.copy(), history.first
    levels = [(-1, device.reserved_bytes)]
    for entry in history.entries:
        if device.changes(entry):
            device.apply(entry)
            levels.append((number, device.reserved_bytes))
        number += entry.action == "alloc"
    return levels
