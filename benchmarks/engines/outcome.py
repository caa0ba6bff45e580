"""What a reader made of the files that were put before it, as a row of a table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emitting import Batch


@dataclass(frozen=True)
class Row:
    """One line of the table: a format, what read it, how many files it took."""

    format: str
    reader: str
    files: int
    refused: int
    not_written: int
    how: str


def skipped(name: str, why: str) -> Row:
    """A row for a reader that is not here."""
    return Row(name, "-", 0, 0, 0, f"skipped: {why}")


def row(
    name: str, reader: str, batch: Batch, errors: Mapping[str, list[str]], how: str, *, is_verbose: bool = False
) -> Row:
    """Count, and print what is wrong."""
    failed = [one for one in batch.written if errors[one.path]]
    for one in failed:
        print(f"{name}, {reader}: {one.name}\n    {'; '.join(errors[one.path])}", file=sys.stderr)
    if is_verbose:
        for setup, reason in batch.refused:
            print(f"{name}, {reader}: not written: {setup}\n    {reason}", file=sys.stderr)
    return Row(name, reader, len(batch.written), len(failed), len(batch.refused), how)


def table(rows: Iterable[Row]) -> list[str]:
    """The rows in Markdown."""
    lines = [
        "| format | read by | files | refused by it | not written by memplan | how |",
        "|---|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| `{each.format}` | {each.reader} | {each.files} | {each.refused} | {each.not_written} | {each.how} |"
        for each in rows
    ]
    return lines
