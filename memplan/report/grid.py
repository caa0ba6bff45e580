"""The map of contexts and concurrencies as a grid: its rows, what part of the cache a cell takes, its labels."""

from __future__ import annotations

from memplan.domain.budget import ContextMap

STEPS = (0.25, 0.5, 0.75, 1.0)
"""How much of the KV cache a cell takes, at most: every step has a shade."""


def short_tokens(tokens: int) -> str:
    """A length as a column's head: `8K` is 8,192, `8k` is 8,000."""
    for base, letters in ((1024, ("K", "M")), (1000, ("k", "m"))):
        for power, letter in ((2, letters[1]), (1, letters[0])):
            if tokens % base**power == 0:
                return f"{tokens // base**power:,}{letter}"
    return f"{tokens:,}"


def short_number(number: float) -> str:
    """A number of requests: whole from ten up, with one digit below."""
    if number != number or number == float("inf"):
        return "any"
    return f"{int(number):,}" if number >= 10 else f"{int(number * 10) / 10:g}"


def counts(found: ContextMap) -> list[int]:
    """The numbers of requests that a context map has rows for: powers of four up to the first that no length has."""
    rows = [1]
    most = max((number for number in found.max_concurrency if number != float("inf")), default=1.0)
    while rows[-1] < most and rows[-1] < 4096:
        rows.append(rows[-1] * 4)
    return rows


def share_of(requests_at_once: int, max_concurrency: float) -> float | None:
    """The part of the cache that so many requests take; None when they have no room."""
    if max_concurrency <= 0 or requests_at_once > max_concurrency:
        return None
    return requests_at_once / max_concurrency


def step_of(share: float) -> int:
    """The step of `STEPS` that a share falls into."""
    return next(step for step, limit in enumerate(STEPS) if share <= limit)
