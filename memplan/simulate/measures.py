"""Times of requests as people compare them: percentiles, and what was served within a limit."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from memplan.domain.simulation import Percentiles, SimulationResult, Traffic


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


def goodput(
    result: SimulationResult, traffic: Traffic, *, max_ttft_s: float | None = None, max_tpot_s: float | None = None
) -> float:
    """Requests a second that finished with their first token and their mean pace within the limits (None: any)."""
    if result.duration_s <= 0:
        return 0.0
    kept = 0
    columns = zip(result.arrived_s, result.first_token_s, result.finished_s, traffic.output_tokens, strict=True)
    for arrived, first, finished, tokens in columns:
        if finished < 0:
            continue
        if max_ttft_s is not None and first - arrived > max_ttft_s:
            continue
        if max_tpot_s is not None and tokens > 1 and (finished - first) / (tokens - 1) > max_tpot_s:
            continue
        kept += 1
    return kept / result.duration_s
