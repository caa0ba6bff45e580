"""Checks of configs whose reader does not run here, by tables of what it takes: tables/*.yaml, each with its source.

A key that is not in the table counts as one that the reader does not know.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

_TABLES = Path(__file__).parent / "tables"
_KINDS: dict[str, tuple[type, ...]] = {
    "whole": (int,),
    "number": (int, float),
    "truth": (bool,),
    "text": (str,),
    "wholes": (list,),
    "nothing": (type(None),),
}


def title_of(name: str) -> str:
    """What a table is of."""
    return str(_table(name)["title"])


def wrong_keys(name: str, release: str, path: str) -> list[str]:
    """Everything in a file that the reader of the table `name` does not take at `release`."""
    table, text = _table(name), Path(path).read_text(encoding="utf-8")
    values = dict(_arguments(text) if path.endswith(".sh") else _flat(yaml.safe_load(text)))
    errors = [line for key, value in values.items() if (line := _wrong(key, value, table["keys"], release))]
    for low, high in table.get("orders", ()):
        if low in values and high in values and values[low] > values[high]:
            errors.append(f"{low} {values[low]} is above {high} {values[high]}")
    return errors


def script_words(path: str) -> list[str]:
    """The arguments behind the program in the last command of a script."""
    text = Path(path).read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("exec "))
    return shlex.split(line)[2:]


def _table(name: str) -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load((_TABLES / f"{name}.yaml").read_text(encoding="utf-8"))
    return table


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _arguments(text: str) -> Iterator[tuple[str, Any]]:
    line = next(line for line in text.replace("\\\n", " ").splitlines() if line.startswith("exec "))
    words = shlex.split(line)[2:]
    for name, value in zip(words[::2], words[1::2], strict=True):
        yield name.removeprefix("--"), _plain(value)


def _plain(word: str) -> Any:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _wrong(key: str, value: Any, known: Mapping[str, Mapping[str, Any]], release: str) -> str | None:
    rule = known.get(key)
    if rule is None:
        return f"{key}: not known"
    if "since" in rule and _numbers(release) < _numbers(str(rule["since"])):
        return f"{key}: not before {rule['since']}"
    if "words" in rule:
        return None if value in rule["words"] else f"{key}: {value!r} is none of {', '.join(rule['words'])}"
    kinds = _KINDS[rule["kind"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return f"{key}: {value!r} is not a {rule['kind']}"
    for each in value if isinstance(value, list) else [value]:
        if ("least" in rule and each < rule["least"]) or ("most" in rule and each > rule["most"]):
            return f"{key}: {each!r} is out of range"
    return None


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))
