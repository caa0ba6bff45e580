"""Which release of an engine has which option, from engine_options/*.yaml: what emit-config may write."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.catalog.rules import Release, parse_release
from memplan.catalog.tables import load_table
from memplan.errors import UsageError
from memplan.records import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptionTable:
    """The options of one engine at one release. `forms` holds what changed in how values are written."""

    engine: str
    title: str
    version: str
    release: Release
    is_newer: bool
    spans: Mapping[str, Mapping[str, Any]] = field(repr=False)
    forms: Mapping[str, Mapping[str, Any]] = field(repr=False)

    def has(self, option: str) -> bool:
        """Whether the release has that option."""
        span = self.spans.get(option)
        return span is not None and _is_within(self.release, span)

    def form(self, name: str) -> Any:
        """The value that a form has at the release: the one of the last step it has reached."""
        value = None
        for since, candidate in self.forms[name].items():
            if parse_release(str(since)) <= self.release:
                value = candidate
        return value

    def require(self, option: str) -> str:
        """Return `option` itself. Raises: UsageError when the release does not have it."""
        if self.has(option):
            return option
        span = self.spans.get(option, {})
        known = f"it has been there since {span['since']}" if "since" in span else "no release has it"
        until = f", and is gone since {span['until']}" if "until" in span else ""
        raise UsageError(
            f"{self.title} {self.version} has no option {option}",
            hint=f"{known}{until}; name another release with --engine {self.engine}@VERSION",
        )


def load_option_table(engine: str, version: str) -> EngineOptionTable:
    """Return the options of `engine` at `version`; a release newer than the table takes the newest options.

    Raises: UsageError for a release that is older than the table.
    """
    table = load_table(Path("engine_options") / f"{engine}.yaml")
    release, newest = parse_release(version), parse_release(str(table["newest"]))
    if release < parse_release(str(table["oldest"])):
        raise UsageError(
            f"no config is written for {table['title']} {version}",
            hint=f"releases from {table['oldest']} on can be written, up to {table['newest']}",
        )
    return EngineOptionTable(
        engine=engine,
        title=str(table["title"]),
        version=version,
        release=min(release, (*newest, 999)),
        is_newer=release[:2] > newest[:2],
        spans=table["options"],
        forms=table.get("forms", {}),
    )


def _is_within(release: Release, span: Mapping[str, Any]) -> bool:
    if release < parse_release(str(span["since"])):
        return False
    return "until" not in span or release < parse_release(str(span["until"]))
