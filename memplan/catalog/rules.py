"""Versioned rule tables of engines: which value a rule has at a release.

A table is a YAML file beside this one with `oldest`, `newest` and `rules`; each rule has a `source` and `steps`, a
mapping from the first release at which a value holds. Rules are facts; what is done with them is in `engines`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from memplan.catalog.tables import load_table
from memplan.errors import UsageError
from memplan.records import dataclass, field

Release = tuple[int, ...]
_NUMBER = re.compile(r"[vb]?(\d+(?:\.\d+)*)")


def parse_release(text: str) -> Release:
    """Return the numbers of a version: `0.10.2`, `v0.22`, `0.29.1rc1.dev3+g12` (taken as 0.29.1), `0.6.3.post1`; a
    build number of llama.cpp, `b5276`.

    Raises: UsageError when it does not start with a number.
    """
    match = _NUMBER.match(text.strip())
    if not match:
        raise UsageError(f"not a version: `{text}`", hint="write it as vllm@0.10.2")
    numbers = tuple(int(part) for part in match[1].split("."))
    return (*numbers, 0, 0)[: max(3, len(numbers))]


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one engine at one release. `is_known` is false for a release newer or older than the table."""

    engine: str
    version: str
    release: Release
    is_known: bool
    values: dict[str, Any] = field(repr=False)
    sources: dict[str, str] = field(repr=False)

    def __getitem__(self, rule: str) -> Any:
        return self.values[rule]

    def source(self, rule: str) -> str:
        """Where the rule was read."""
        return self.sources[rule]


@cache
def load_rules(engine: str, version: str | None) -> Rules:
    """Return the rules of `engine` at `version`, the newest known one by default.

    A release newer than the table takes the newest rules, an older one the oldest; both set `is_known` false.
    """
    table = load_table(Path("engines") / f"{engine}.yaml")
    newest, oldest = parse_release(table["newest"]), parse_release(table["oldest"])
    release = parse_release(version) if version else newest
    clamped = min(max(release, oldest), (*newest, 999))
    values = {name: _at(rule["steps"], clamped) for name, rule in table["rules"].items()}
    return Rules(
        engine=engine,
        version=version or table["newest"],
        release=release,
        is_known=oldest <= release and release[:2] <= newest[:2],
        values=values,
        sources={name: str(rule["source"]) for name, rule in table["rules"].items()},
    )


def _at(steps: dict[str, Any], release: Release) -> Any:
    """The value of the last step that `release` has reached; None before the first."""
    value = None
    for since, candidate in steps.items():
        if parse_release(since) <= release:
            value = candidate
    return value
