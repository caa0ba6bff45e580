"""YAML files with the reason above every value. Keys and values are plain: what is quoted, is so that no parser reads
anything else into it.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from memplan.records import dataclass

_COMMENT_WIDTH = 116
_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+-]*(?::[A-Za-z0-9_./+-]+)*")
# Words that YAML 1.1 takes for something else than text.
_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null", "none", "~")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key with its value, and why it has that value. A mapping as value is written as a block, a list in one
    line.
    """

    key: str
    value: object
    why: str = ""


def yaml_text(header: Sequence[str], entries: Iterable[Entry]) -> str:
    """Return a YAML file: the header as a comment, then every entry below its reason."""
    lines = [*comment(header)]
    for entry in entries:
        if entry.why:
            lines += ["", *comment([entry.why])]
        lines += _block(entry.key, entry.value, "")
    return "\n".join(lines) + "\n"


def comment(paragraphs: Iterable[str], *, sign: str = "#") -> list[str]:
    """Return paragraphs as comment lines; an empty one is a bare sign.

    Text from outside (a model's name, a path) cannot end a comment: control characters are dropped.
    """
    lines: list[str] = []
    for paragraph in paragraphs:
        clean = "".join(letter for letter in paragraph if letter.isprintable())
        pieces = textwrap.wrap(clean, _COMMENT_WIDTH, break_long_words=False, break_on_hyphens=False) or [""]
        lines += [f"{sign} {piece}".rstrip() for piece in pieces]
    return lines


def scalar(value: object) -> str:
    """Return one value as YAML reads it back unchanged."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return _number(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return json.dumps(text, ensure_ascii=False)


def _number(value: int | float) -> str:
    """A number that YAML 1.1 reads as one: it takes 1e-05 for a word."""
    text = repr(value)
    return f"{value:.12f}".rstrip("0") if isinstance(value, float) and "e" in text else text


def _block(key: str, value: object, indent: str) -> list[str]:
    if isinstance(value, Mapping):
        lines = [f"{indent}{key}:"]
        for name, item in value.items():
            lines += _block(str(name), item, indent + "  ")
        return lines
    if isinstance(value, (list, tuple)):
        return [f"{indent}{key}: [{', '.join(scalar(item) for item in value)}]"]
    return [f"{indent}{key}: {scalar(value)}"]
