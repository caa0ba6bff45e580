"""What was seen in a text: patterns with figures, each kept in constant memory however often it is met.

A pattern's groups name their unit last, and lose it when they are read: `free_gib` becomes `free` in bytes (`_mib`,
`_kib` and `_bytes` likewise), `free_size` reads `2.00 MiB`, `tokens_n` a count, `share_x` a fraction; any other is
text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from memplan.doctor.secrets import redact, shown
from memplan.records import dataclass, field
from memplan.units import GIB, KIB, MIB

Value = int | float | str
_UNITS = {"gib": GIB, "mib": MIB, "kib": KIB, "bytes": 1, "gb": GIB, "mb": MIB}
_SIZE = re.compile(r"([\d.]+)\s*(bytes?|[KMGT]i?B|B)\b", re.IGNORECASE)
_POWERS = {"b": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_LARGEST = 1 << 60


@dataclass(frozen=True, slots=True)
class Pattern:
    """One wording. `cue` is a part of it that is looked for before the expression is tried."""

    name: str
    cue: str
    expression: re.Pattern[str]


def pattern(name: str, cue: str, expression: str) -> Pattern:
    """Return a pattern with its expression compiled."""
    return Pattern(name, cue, re.compile(expression))


@dataclass(frozen=True, slots=True)
class Sighting:
    """One place where a pattern was met: its line, its figures, and what stands there, which may hold secrets."""

    name: str
    line: int
    values: Mapping[str, Value]
    raw: str = field(repr=False)

    @property
    def text(self) -> str:
        """The line as it may be repeated."""
        return shown(self.raw)

    def number(self, key: str) -> float | None:
        """A figure of it; None where the text did not have it."""
        value = self.values.get(key)
        return value if isinstance(value, (int, float)) else None


class Sightings:
    """All that was seen: of every pattern the first and the last place, how often, and each figure's bounds."""

    def __init__(self) -> None:
        self._first: dict[str, Sighting] = {}
        self._last: dict[str, Sighting] = {}
        self._counts: dict[str, int] = {}
        self._bounds: dict[tuple[str, str], tuple[float, float]] = {}

    def add(self, sighting: Sighting) -> None:
        """Take one place in."""
        name = sighting.name
        self._first.setdefault(name, sighting)
        self._last[name] = sighting
        self._counts[name] = self._counts.get(name, 0) + 1
        for key, value in sighting.values.items():
            if not isinstance(value, str):
                low, high = self._bounds.get((name, key), (value, value))
                self._bounds[name, key] = (min(low, value), max(high, value))

    def __contains__(self, name: object) -> bool:
        return name in self._first

    def __bool__(self) -> bool:
        return bool(self._first)

    def names(self) -> tuple[str, ...]:
        """All patterns that were met, in the order of their first places."""
        return tuple(sorted(self._first, key=lambda name: self._first[name].line))

    def count(self, name: str) -> int:
        """How often a pattern was met."""
        return self._counts.get(name, 0)

    def first(self, *names: str) -> Sighting | None:
        """The first place of the first of these patterns that was met at all."""
        return next((self._first[name] for name in names if name in self._first), None)

    def last(self, *names: str) -> Sighting | None:
        """The last place of the first of these patterns that was met at all."""
        return next((self._last[name] for name in names if name in self._last), None)

    def low(self, name: str, key: str) -> float | None:
        """The smallest figure of a pattern: of several ranks, the one that has least."""
        return self._bounds[name, key][0] if (name, key) in self._bounds else None

    def high(self, name: str, key: str) -> float | None:
        """The largest figure of a pattern."""
        return self._bounds[name, key][1] if (name, key) in self._bounds else None

    def line_of(self, name: str) -> int | None:
        """The line of a pattern's last place."""
        return self._last[name].line if name in self._last else None


def see(patterns: Iterable[Pattern], number: int, line: str) -> list[Sighting]:
    """Return every pattern's place in a line."""
    found = []
    for each in patterns:
        if each.cue and each.cue not in line:
            continue
        match = each.expression.search(line)
        if match is not None:
            found.append(Sighting(each.name, number, _values(match), _around(line, match)))
    return found


def parse_size(text: str) -> int | None:
    """Bytes of a size as PyTorch and engines print it: `2.00 MiB`, `0 bytes`, `7.9 GB` (which is GiB there)."""
    match = _SIZE.search(text)
    if match is None:
        return None
    number = _float(match[1])
    return None if number is None else _whole(number * 1024 ** _POWERS[match[2][0].lower()])


def _values(match: re.Match[str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, text in match.groupdict().items():
        if text is None:
            continue
        key, _, unit = name.rpartition("_")
        value = _value(text, unit if key else "")
        if value is not None:
            values[key if key and unit in (*_UNITS, "size", "n", "x") else name] = value
    return values


def _value(text: str, unit: str) -> Value | None:
    if unit == "size":
        return parse_size(text)
    if unit in _UNITS or unit in ("n", "x"):
        number = _float(text.replace(",", ""))
        if number is None:
            return None
        if unit == "x":
            return number
        return _whole(number * _UNITS.get(unit, 1))
    return redact(text)[:300]


def _float(text: str) -> float | None:
    try:
        number = float(text.rstrip(".") or "nan")
    except ValueError:
        return None
    return number if abs(number) < _LARGEST else None


def _whole(number: float) -> int | None:
    return round(number) if abs(number) < _LARGEST else None


def _around(line: str, match: re.Match[str]) -> str:
    """The part of a line that says it: a long line is cut around the match."""
    if len(line) <= 240:
        return line
    start = max(0, match.start() - 40)
    start = line.find(" ", start, match.start()) + 1 if start else 0  # 0, the line's own start, where no word begins
    return line[start or max(0, match.start() - 40) :][:400]
