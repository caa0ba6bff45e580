"""Shell scripts that start one program, with the reason for every argument above the command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from memplan.emit.yaml_text import Entry, comment


def shell_text(
    header: Sequence[str], program: str, entries: Iterable[Entry], environment: Mapping[str, str] | None = None
) -> str:
    """Return a script. An entry's key is an option without its dashes; True is a flag alone."""
    found = list(entries)
    lines = ["#!/bin/sh", *comment(header), "#"]
    for entry in found:
        if entry.why:
            lines += comment([f"--{entry.key}: {entry.why}"])
    lines += ["set -eu", ""]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    words = [f"exec {program}", *(argument(entry) for entry in found)]
    return "\n".join(lines) + "\n" + " \\\n  ".join(words) + "\n"


def argument(entry: Entry) -> str:
    """One option as it is typed."""
    if entry.value is True:
        return f"--{entry.key}"
    return f"--{entry.key} {shlex.quote(str(entry.value))}"
