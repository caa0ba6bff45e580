"""The second walk of a trace: what is alive at the steps that matter, by category, by module and by size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memplan.domain.timeline import CATEGORIES, Category, LiveTensor
from memplan.profile.events import EventLog, Label
from memplan.records import dataclass, replace

_WEIGHTS = CATEGORIES.index("weights")
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
        self._patterns = Patterns(log)

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
            largest=self._patterns.merged(self._live, self._held, num_largest),
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


class Patterns:
    """Finds which allocations look alike: labels that differ only in the numbers of their modules count as one."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        numbers: dict[Label, int] = {}
        self._number_of = [
            numbers.setdefault(replace(label, module=module_pattern(label.module)), len(numbers))
            for label in log.labels
        ]
        self._labels = list(numbers)

    def merged(self, numbers: Iterable[int], held: Sequence[int], most: int) -> tuple[LiveTensor, ...]:
        """The `most` largest of some allocations, of weights and of all else alike: weights alone would fill any list.

        Those that look alike and are of one size are counted together.
        """
        number_of, label_of, category_of = self._number_of, self._log.label_of, self._log.category_of
        groups: dict[tuple[int, int, int], list[int]] = {}
        for number in numbers:
            key = (number_of[label_of[number]], category_of[number], held[number])
            groups.setdefault(key, []).append(number)
        ranked = sorted(groups.items(), key=lambda item: -item[0][2] * len(item[1]))
        room = {True: most, False: most}
        found = []
        for (pattern, category, size), alike in ranked:
            is_weight = category == _WEIGHTS
            if room[is_weight]:
                room[is_weight] -= 1
                found.append(self._tensor(size, CATEGORIES[category], self._labels[pattern], alike))
        return tuple(found)

    def _tensor(self, size: int, category: Category, label: Label, alike: list[int]) -> LiveTensor:
        own = self._log.labels[self._log.label_of[alike[0]]]
        return LiveTensor(
            size_bytes=size * len(alike),
            category=category,
            module=own.module if len(alike) == 1 else label.module,
            operator=label.operator,
            where=label.where,
            shape=label.shape,
            dtype=label.dtype,
            count=len(alike),
        )


def module_pattern(module: str) -> str:
    """A module's name with `*` for its numbers: `model.layers.*.mlp`."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))
