"""Files of requests: how long prompts and answers were, one request a line.

Read are JSON lines (numbers, or objects with a column), CSV and TSV with a head, and plain text with a number a line.
Columns are known by the names that public traces and load tests give them; `FILE:COLUMN` names another.
Source: the heads of Azure/AzurePublicDataset (LLM inference traces), kvcache-ai/Mooncake and HPMLL/BurstGPT.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from memplan.domain.lengths import Lengths, observed, parse_lengths
from memplan.errors import UsageError, did_you_mean

Side = Literal["prompt", "output"]

_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt")
_MAX_BYTES = 256 << 20
LENGTH_COLUMNS: Mapping[Side, tuple[str, ...]] = {
    "prompt": (
        *("prompt_tokens", "prompt_len", "prompt_length", "num_prompt_tokens", "input_tokens", "input_len"),
        *("input_length", "contexttokens", "request tokens", "input_sequence_length", "isl"),
    ),
    "output": (
        *("output_tokens", "output_len", "output_length", "completion_tokens", "num_output_tokens"),
        *("generatedtokens", "response tokens", "output_sequence_length", "osl", "generated_tokens"),
    ),
}
_NUMBER_PER_LINE = "a file of lengths has one request a line: a number, JSON, or CSV with a head"


def read_lengths(text: str, side: Side, *, longest: int, flag: str) -> Lengths:
    """Return the lengths that an option states: a number, a distribution, or a file with an optional `:COLUMN`.

    Raises: UsageError for a value or a file that does not read.
    """
    named = _named_file(text.strip())
    if named is None:
        return parse_lengths(text, longest=longest, what=flag)
    path, column = named
    columns = read_columns(path)
    return observed(_column(columns, column, side, path), longest=longest)


def read_columns(path: Path) -> dict[str, list[float]]:
    """Return every column of numbers in a file of requests, by its name in small letters; `` where it has none."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is larger than 256 MiB", hint="give a sample of it")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read {path}: {reason}", hint=_NUMBER_PER_LINE) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path} is empty", hint=_NUMBER_PER_LINE)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _of_table(lines, "\t" if path.suffix.lower() == ".tsv" else ",")
    return _of_lines(lines, path)


def _named_file(text: str) -> tuple[Path, str | None] | None:
    """The file and the column of an option's value; None for one that names no file."""
    if text.lower().endswith(_SUFFIXES):
        return Path(text), None
    name, colon, column = text.rpartition(":")
    if colon and name.lower().endswith(_SUFFIXES):
        return Path(name), column.strip().lower()
    return None


def _of_table(lines: list[str], delimiter: str) -> dict[str, list[float]]:
    rows = list(csv.reader(lines, delimiter=delimiter))
    if all(_number(cell) is not None for cell in rows[0]):  # no head
        names = [""] if len(rows[0]) == 1 else [str(place) for place in range(1, len(rows[0]) + 1)]
    else:
        names, rows = [cell.strip().lower() for cell in rows[0]], rows[1:]
    return _gathered(dict(zip(names, row, strict=False)) for row in rows)


def _of_lines(lines: list[str], path: Path) -> dict[str, list[float]]:
    found: list[dict[str, object]] = []
    for place, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            found.append({str(name).lower(): value for name, value in entry.items()})
        elif isinstance(entry, (int, float)):
            found.append({"": entry})
        else:
            raise UsageError(f"{path}, line {place}: not a request: `{line:.60}`", hint=_NUMBER_PER_LINE)
    return _gathered(found)


def _gathered(rows: Iterable[Mapping[str, object]]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, cell in row.items():
            number = _number(cell)
            if number is not None:
                columns.setdefault(name, []).append(number)
    return columns


def _number(cell: object) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, (int, float, str)):
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _column(columns: Mapping[str, list[float]], asked: str | None, side: Side, path: Path) -> list[int]:
    names = (asked,) if asked is not None else ("", *LENGTH_COLUMNS[side])
    name = next((name for name in names if name in columns), None)
    if name is None:
        known = [each for each in columns if each]
        wanted = asked or f"{side} lengths"
        hint = did_you_mean(wanted, known) or f"name one: {path}:COLUMN, of {', '.join(known[:8]) or 'none'}"
        raise UsageError(f"{path} has no column of {side} lengths" + (f" `{asked}`" if asked else ""), hint=hint)
    values = columns[name]
    if any(value != value or abs(value) > 1e12 for value in values):
        raise UsageError(f"{path}: a length out of range", hint=_NUMBER_PER_LINE)
    return [round(value) for value in values]
