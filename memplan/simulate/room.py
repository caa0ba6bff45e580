"""What a cache's room is taken by, summed over steps in whole numbers, so that no order of adding changes it."""

from __future__ import annotations

from typing import NamedTuple

from memplan.domain.simulation import Waste


class State(NamedTuple):
    """One replica while a pass runs."""

    used_blocks: int
    cached_blocks: int
    tokens: int
    running: int
    waiting: int
    preemptions: int


class RoomSums:
    """Sums over steps, in units of which a block has `unit`: with one group of layers a unit is a token's slot."""

    __slots__ = ("cached", "external", "free", "internal", "reserved", "shared", "tokens", "unit")

    def __init__(self, *, unit: int) -> None:
        self.unit = unit
        self.tokens = self.internal = self.reserved = self.external = self.cached = self.free = self.shared = 0

    def add_paged(self, *, used: int, cached: int, held: int, empty: int, blocks: int, steps: int = 1) -> None:
        """Add sums over `steps` steps of a paged cache: blocks in use (each once), found again, in tables, and `empty`
        units at the ends of tables. `blocks` is the size of the pool.
        """
        unit = self.unit
        self.tokens += used * unit - empty
        self.internal += empty
        self.cached += cached * unit
        self.free += (blocks * steps - used - cached) * unit
        self.shared += (held - used) * unit

    def add_contiguous(self, *, stored: int, later: int, reserved: int, free: int, refused: bool) -> None:
        """Add a step of a contiguous cache, in tokens. Free room is lost to gaps while who waits first fits in none."""
        self.tokens += stored
        self.reserved += later
        self.internal += reserved - stored - later
        if refused:
            self.external += free
        else:
            self.free += free


def parts_of(sums: list[RoomSums]) -> Waste:
    """The parts of all replicas' room together."""
    total = {
        name: sum(getattr(each, name) for each in sums)
        for name in ("tokens", "internal", "reserved", "external", "cached", "free", "shared")
    }
    room = sum(value for name, value in total.items() if name != "shared")
    return Waste(**{name: value / room if room else float(name == "free") for name, value in total.items()})
