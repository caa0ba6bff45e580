"""Times of requests as people compare them."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from memplan.domain.simulation import Percentiles


def percentiles(seconds: Iterable[float]) -> Percentiles | None:
    """Nearest-rank percentiles; None where there is nothing."""
    row = sorted(seconds)
    if not row:
        return None

    def rank(part: float) -> float:
        return row[ceil(part * len(row)) - 1]

    return Percentiles(
        mean=sum(row) / len(row), p50=rank(0.5), p90=rank(0.9), p95=rank(0.95), p99=rank(0.99), longest=row[-1]
    )
