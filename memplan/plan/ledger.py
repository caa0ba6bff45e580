"""The books of a search: every candidate that was ruled out, merged into regions that share a limit and a reason."""

from __future__ import annotations

from memplan.domain.plan import Limit, Rejection

# The order in which candidates are checked, from the last check to the first.
_LAST_FIRST: tuple[Limit, ...] = (
    *("rate", "tpot", "ttft", "memory", "budget", "quality", "precision", "shape", "servable"),
)


class Ledger:
    """Collects what was ruled out. Regions of one limit and name are one entry, with the first reason that was seen."""

    __slots__ = ("_entries", "considered", "estimated")

    def __init__(self) -> None:
        self._entries: dict[tuple[Limit, str], Rejection] = {}
        self.considered = 0
        self.estimated = 0

    def rule_out(self, limit: Limit, region: str, reason: str, candidates: int = 1, source: str = "") -> None:
        """Note that `candidates` of a region are out."""
        key = (limit, region)
        known = self._entries.get(key)
        self._entries[key] = Rejection(
            limit=limit,
            region=region,
            reason=known.reason if known else reason,
            candidates=candidates + (known.candidates if known else 0),
            source=known.source if known else source,
        )

    def rejections(self) -> tuple[Rejection, ...]:
        """All regions, the largest of each limit first."""
        return tuple(sorted(self._entries.values(), key=lambda entry: (-entry.candidates, entry.region)))

    def binding(self) -> tuple[Limit, ...]:
        """The limits that left nothing: first those that the last candidates failed at, then those before them.

        What no engine runs at all binds only where nothing else does.
        """
        asked = tuple(limit for limit in _LAST_FIRST if any(entry.limit == limit for entry in self._entries.values()))
        return tuple(limit for limit in asked if limit not in ("servable", "shape")) or asked
