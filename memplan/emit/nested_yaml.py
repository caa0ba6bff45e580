"""Nested YAML documents with the reason above a value, for manifests: mappings, lists of mappings, literal texts."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.emit.yaml_text import Entry, comment, scalar
from memplan.records import dataclass

Fields = tuple[Entry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A list of mappings."""

    of: tuple[Fields, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text kept letter for letter, in a literal block."""

    text: str


def field(key: str, value: object, why: str = "") -> Entry:
    """One key of a mapping. A tuple of fields as value is a mapping below it, a list is written in one line."""
    return Entry(key=key, value=value, why=why)


def document(header: Sequence[str], fields: Fields) -> str:
    """Return one YAML document, its header as a comment above it."""
    return "\n".join([*comment(header), *_mapping(fields, "")]) + "\n"


def _mapping(fields: Fields, indent: str) -> list[str]:
    lines: list[str] = []
    for each in fields:
        if each.why:
            lines += [f"{indent}{line}" for line in comment([each.why])]
        lines += _field(each, indent)
    return lines


def _field(each: Entry, indent: str) -> list[str]:
    name, value = f"{indent}{scalar(each.key)}:", each.value
    if isinstance(value, Items):
        return [name, *_items(value, f"{indent}  ")]
    if isinstance(value, Text):
        body = [f"{indent}  {line}".rstrip() for line in value.text.rstrip("\n").splitlines()]
        return [f"{name} |", *body]
    if isinstance(value, tuple):
        return [name, *_mapping(value, f"{indent}  ")] if value else [f"{name} {{}}"]
    if isinstance(value, list):
        return [f"{name} [{', '.join(scalar(item) for item in value)}]"]
    return [f"{name} {scalar(value)}"]


def _items(items: Items, indent: str) -> list[str]:
    """Each mapping of a list; its dash stands before its first key, below the reason of that key."""
    lines: list[str] = []
    for fields in items.of:
        below = _mapping(fields, f"{indent}  ")
        first = next(index for index, line in enumerate(below) if not line.lstrip().startswith("#"))
        below[first] = f"{indent}- {below[first].lstrip()}"
        lines += [f"{indent}{line.lstrip()}" if index < first else line for index, line in enumerate(below)]
    return lines
