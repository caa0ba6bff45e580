"""The second walk of a trace: what is alive at the steps that matter, by category, by module and by size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memplan.domain.timeline import CATEGORIES, Category, LiveTensor
from memplan.profile.events import EventLog
from memplan.records import dataclass

_KEPT = frozenset(CATEGORIES.index(name) for name in ("weights", "kv_cache", "gradients", "optimizer_state"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is alive at a step. `largest` merges tensors that look alike; the sums count their blocks."""

    by_category: dict[Category, int]
    by_module: dict[str, int]
    largest: tuple[LiveTensor, ...]


class Survey:
    """Walks a trace forward from step to step. `held[i]` is the size of allocation i's block, and `num_made` counts the
    allocations up to here."""

    def __init__(self, log: EventLog, held: Sequence[int]) -> None:
        self._log = log
        self._held = held
        self._step = 0
        self.num_made = 0
        self._live: dict[int, None] = {}
        self._totals = [0] * len(CATEGORIES)
        self._modules: dict[tuple[int, int], str] = {}

    def go_to(self, step: int) -> None:
        """Walk on to the state after `step` events."""
        held, live, totals, category_of = self._held, self._live, self._totals, self._log.category_of
        made = self.num_made
        for event in self._log.order[self._step : step]:
            if event > 0:
                made = event
                number = event - 1
                live[number] = None
                totals[category_of[number]] += held[number]
            else:
                number = ~event
                del live[number]
                totals[category_of[number]] -= held[number]
        self._step, self.num_made = step, made

    def by_category(self) -> dict[Category, int]:
        """Bytes of each category that has any here."""
        return {CATEGORIES[index]: total for index, total in enumerate(self._totals) if total}

    def contents(self, *, module_depth: int, num_largest: int) -> Contents:
        """All that is alive here."""
        return Contents(
            by_category=self.by_category(),
            by_module=self._by_module(module_depth),
            largest=merged(self._log, self._live, self._held, num_largest),
        )

    def left_bytes(self, first: int) -> int:
        """Bytes alive here of allocations since number `first`, less what is meant to stay."""
        left = 0
        for number in reversed(self._live):
            if number < first:
                break
            if self._log.category_of[number] not in _KEPT:
                left += self._held[number]
        return left

    def _by_module(self, depth: int) -> dict[str, int]:
        sums: dict[int, int] = {}
        label_of, held = self._log.label_of, self._held
        for number in self._live:
            label = label_of[number]
            sums[label] = sums.get(label, 0) + held[number]
        modules: dict[str, int] = {}
        for label, total in sums.items():
            name = self._modules.get((label, depth))
            if name is None:
                name = ".".join(self._log.labels[label].module.split(".")[:depth])
                self._modules[label, depth] = name
            modules[name] = modules.get(name, 0) + total
        return dict(sorted(modules.items(), key=lambda item: -item[1]))


def merged(log: EventLog, numbers: Iterable[int], held: Sequence[int], most: int) -> tuple[LiveTensor, ...]:
    """The `most` largest of some allocations, those with one label, category and size counted together."""
    groups: dict[tuple[int, int, int], int] = {}
    for number in numbers:
        key = (log.label_of[number], log.category_of[number], held[number])
        groups[key] = groups.get(key, 0) + 1
    ranked = sorted(groups.items(), key=lambda item: -item[0][2] * item[1])
    return tuple(
        LiveTensor(
            size_bytes=size * count,
            category=CATEGORIES[category],
            module=log.labels[label].module,
            operator=log.labels[label].operator,
            where=log.labels[label].where,
            shape=log.labels[label].shape,
            dtype=log.labels[label].dtype,
            count=count,
        )
        for (label, category, size), count in ranked[:most]
    )
