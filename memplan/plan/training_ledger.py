"""The books of a search for a way to train: what was ruled out, and why."""

from __future__ import annotations

from collections.abc import Set

from memplan.domain.training_plan import TrainingRejection
from memplan.units import format_gib


class TrainingLedger:
    """Collects what was ruled out, one entry for each region and reason; of what has no room the nearest miss."""

    __slots__ = ("_reasons", "_short", "considered")

    def __init__(self) -> None:
        self._reasons: dict[tuple[str, str], int] = {}
        self._short: dict[str, tuple[int, int]] = {}
        self.considered = 0

    def rule_out(self, region: str, reason: str) -> None:
        """Note that a candidate of a region is out."""
        self._reasons[region, reason] = self._reasons.get((region, reason), 0) + 1

    def no_room(self, region: str, short_bytes: int) -> None:
        """Note that a candidate has no room, by how much."""
        least, number = self._short.get(region, (short_bytes, 0))
        self._short[region] = min(least, short_bytes), number + 1

    def rejections(self, having: Set[str] = frozenset()) -> tuple[TrainingRejection, ...]:
        """All regions, those with most candidates first; that some of a region of `having` have no room is left out."""
        found = [
            TrainingRejection(region=region, reason=reason, candidates=number)
            for (region, reason), number in self._reasons.items()
        ]
        found += [
            TrainingRejection(region=region, reason=f"no room: {format_gib(short)} short at best", candidates=number)
            for region, (short, number) in self._short.items()
            if region not in having
        ]
        return tuple(sorted(found, key=lambda each: (-each.candidates, each.region)))
