"""Rows of a large matrix, some at a time: what is made beside it then stays small, whatever its size."""

from __future__ import annotations

from collections.abc import Iterator

ROWS = 1024


def row_slices(num_rows: int, rows: int = ROWS) -> Iterator[slice]:
    """The rows of a matrix in slices of at most `rows`, in order."""
    return (slice(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows))
