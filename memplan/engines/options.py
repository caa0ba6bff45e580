"""An engine's own options, as `--set KEY=VALUE` or a config file gives them: typed, with one clear line for a bad one.

A name that the engine's memory does not depend on is kept for the reader to see; one that is nearly a name that it does
depend on is refused, because it is a slip of the pen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from memplan.errors import UsageError, did_you_mean
from memplan.units import GIB, parse_count, parse_size_bytes

_NEAR = 0.8


class EngineOptions:
    """The options of one run. `known` are those that may matter; reading an option makes it known as well."""

    def __init__(self, engine: str, given: Mapping[str, object], known: Iterable[str] = ()) -> None:
        self._engine = engine
        self._given = {key.lstrip("-").replace("-", "_"): value for key, value in given.items()}
        self._read = set(known)

    def has(self, *names: str) -> bool:
        """Whether one of `names` is given and not null."""
        return self._first(names) is not None

    def is_number(self, *names: str) -> bool:
        """Whether one of `names` is given as a number."""
        found = self._first(names)
        return found is not None and isinstance(found[1], (int, float)) and not isinstance(found[1], bool)

    def count(self, *names: str, minimum: int = 1) -> int | None:
        """Return a whole number of at least `minimum`, or None when it is not given.

        Raises: UsageError for anything else.
        """
        found = self._first(names)
        if found is None:
            return None
        name, value = found
        if isinstance(value, str):
            return parse_count(value, what=name, minimum=minimum)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value % 1 != 0:
            raise self._bad(name, value, "a whole number")
        if value < minimum:
            raise self._bad(name, value, f"at least {minimum}")
        return int(value)

    def fraction(self, *names: str, maximum: float = 1.0) -> float | None:
        """Return a number above 0 and at most `maximum`, or None when it is not given.

        Raises: UsageError for anything else.
        """
        found = self._first(names)
        if found is None:
            return None
        name, value = found
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= maximum:
            raise self._bad(name, value, f"above 0 and at most {maximum:g}")
        return float(value)

    def flag(self, *names: str) -> bool | None:
        """Return true or false, or None when it is not given.

        Raises: UsageError for anything else.
        """
        found = self._first(names)
        if found is None:
            return None
        name, value = found
        if not isinstance(value, bool):
            raise self._bad(name, value, "true or false")
        return value

    def word(self, *names: str, among: Iterable[str] = ()) -> str | None:
        """Return a word, one of `among` where that is given, or None when it is not given.

        Raises: UsageError for anything else.
        """
        found = self._first(names)
        if found is None:
            return None
        name, value = found
        known = tuple(among)
        if not isinstance(value, str) or (known and value.lower() not in known):
            hint = did_you_mean(str(value), list(known)) if known else None
            raise self._bad(name, value, f"one of {', '.join(known)}" if known else "a word", hint)
        return value.lower() if known else value

    def size(self, *names: str) -> int | None:
        """Return a size in bytes, written with its unit (`78.49GiB`); a bare number counts GiB. None when not given."""
        found = self._first(names)
        if found is None:
            return None
        name, value = found
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            return round(value * GIB) if value < 1e6 else round(value)
        if isinstance(value, str):
            return parse_size_bytes(value, what=name)
        raise self._bad(name, value, "a size such as 78.49GiB")

    def unused(self) -> tuple[str, ...]:
        """The options that are not known.

        Raises: UsageError for one that is nearly the name of one that is.
        """
        left = tuple(sorted(set(self._given) - self._read))
        for name in left:
            if near := _nearly(name, self._read):
                raise UsageError(f"unknown {self._engine} option: `{name}`", hint=f"did you mean {near}?")
        return left

    def _first(self, names: tuple[str, ...]) -> tuple[str, object] | None:
        self._read.update(names)
        for name in names:
            if (value := self._given.get(name)) is not None:
                return name, value
        return None

    def _bad(self, name: str, value: object, wanted: str, hint: str | None = None) -> UsageError:
        return UsageError(f"{self._engine} option {name} is `{value}`", hint=hint or f"it must be {wanted}")


def _nearly(name: str, known: set[str]) -> str | None:
    import difflib

    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_NEAR)
    return near[0] if near else None
