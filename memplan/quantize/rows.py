"""Rows of a large matrix: some at a time, so that what is made beside it stays small, or some that stand for all."""

from __future__ import annotations

from collections.abc import Iterator

ROWS = 1024


def row_slices(num_rows: int, rows: int = ROWS) -> Iterator[slice]:
    """The rows of a matrix in slices of at most `rows`, in order."""
    return (slice(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows))


def evenly_spaced(num_rows: int, most: int) -> slice:
    """At most so many of a matrix's rows."""
    return slice(None, None, max(1, -(-num_rows // most)))
