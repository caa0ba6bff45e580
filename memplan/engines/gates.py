"""The conditions that a start-up must meet, and lines with intervals: what engines build their answers of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import floor

from memplan.domain.budget import Group, Line, Provenance, Verdict
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition: by how many bytes it is met, and the half-width of a 90 % interval of that.

    A condition of starting (`stops`) refuses where it is missed; one of what comes later only makes it tight.
    """

    margin_bytes: int
    spread_bytes: int
    reason: str
    stops: bool = True

    @property
    def verdict(self) -> Verdict:
        if self.margin_bytes < -self.spread_bytes:
            return "does_not_fit" if self.stops else "tight"
        return "fits" if self.margin_bytes >= self.spread_bytes else "tight"


def worst_verdict(gates: Iterable[Gate]) -> Verdict:
    """The verdict of all gates together."""
    verdicts = {gate.verdict for gate in gates}
    if "does_not_fit" in verdicts:
        return "does_not_fit"
    return "tight" if "tight" in verdicts else "fits"


def shortfall_bytes(gates: Iterable[Gate]) -> int:
    """By how much the gate that is met least is missed; 0 when all are met."""
    return max(0, -min(gate.margin_bytes for gate in gates))


def room_for(holds: Callable[[int], bool], share: float, *, groups: int) -> float:
    """How many requests have room over `groups` of ranks that serve requests of their own.

    `holds` says whether one group has room for so many, `share` is an upper bound with its fraction, which is kept for
    a single group: 0.63 of a request says how much is missing.
    """
    low, high = 0, floor(share)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    if groups > 1 and low:
        return float(groups * low)
    return floor(min(share, low + 0.99) * 100) / 100


def spread_line(
    name: str, group: Group, size: int, spread: int, provenance: Provenance, formula: str, source: str
) -> Line:
    """A line whose interval reaches `spread` bytes to both sides; what is held cannot be less than nothing."""
    return Line(
        name=name,
        group=group,
        size_bytes=size,
        low_bytes=max(0, size - spread) if size >= 0 else size - spread,
        high_bytes=size + spread,
        provenance=provenance,
        formula=formula,
        source=source,
    )
