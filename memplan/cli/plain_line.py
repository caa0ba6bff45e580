"""Command lines that need no parser: flags spelt out, values of their type, nothing given twice.

Importing the parser takes longer than an estimate. What is not plain (--help, a short flag with its value attached, an
unknown name, a value of another type) is left to it, which says best what is wrong.

Checked by: tests/cli/test_plain_line.py, against the parser.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from memplan.cli.options import Command, Option, flags_of


def _readable(text: str) -> Path | None:
    """The path, unless there is something at it that cannot be read."""
    return None if os.path.exists(text) and not os.access(text, os.R_OK) else Path(text)


_READERS: Mapping[Any, Callable[[str], Any]] = {str: str, int: int, float: float, Path: _readable, list[str]: str}


def read_plain_line(command: Command, words: Sequence[str]) -> dict[str, Any] | None:
    """Return what the parser would make of the words behind a command's name; None where it has to be asked."""
    flags = _flags(command.options)
    found: dict[str, Any] = {}
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        flag, has_value, value = word.partition("=")
        if not word.startswith("-"):
            if command.argument is None or command.argument.name in found:
                return None
            found[command.argument.name] = word
            continue
        if flag not in flags or (has_value and not flag.startswith("--")):
            return None
        option, answer = flags[flag]
        if option.kind is bool:
            read = None if has_value else answer
        else:
            read = _value(option, value if has_value else rest.pop() if rest else "")
        if read is None or (option.name in found and option.kind != list[str]):
            return None
        found[option.name] = [*found.get(option.name, ()), read] if option.kind == list[str] else read
    declared = [option.name for option in (command.argument, *command.options) if option is not None]
    return {name: found[name] for name in declared if name in found}


def _flags(options: Sequence[Option]) -> dict[str, tuple[Option, bool]]:
    """Every flag, with its option and whether it says yes."""
    found = {}
    for option in options:
        spelt, opposite = flags_of(option)
        found.update(dict.fromkeys(spelt, (option, True)))
        if opposite is not None:
            found[opposite] = (option, False)
    return found


def _value(option: Option, text: str) -> Any:
    """The value of a text; None where it is empty, looks like a flag, is of another type, or one of several texts."""
    read = _READERS.get(option.kind)
    if read is None or not text or text.startswith("-"):
        return None
    try:
        return read(text)
    except ValueError:
        return None
