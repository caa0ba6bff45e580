"""The widths of training budgets' intervals: by group, never narrower than is known, wide where little is known."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "training"))
from intervals import GROUPS, NARROWEST, widths

from memplan.engines.training.fitted import load_fitted


def rows(low: float, high: float, number: int, *sources: str) -> list[tuple[str, float]]:
    step = (high - low) / (number - 1)
    return [(sources[index % len(sources)], low + step * index) for index in range(number)]


def test_a_group_has_the_widths_of_its_own_rows() -> None:
    found = widths({"full_whole": rows(-0.1, 0.1, 101, "a", "b"), "adapters_whole": rows(-0.5, 0.5, 101, "a", "b")})
    assert found["full_whole"] == (-0.09, 0.09, 101)
    assert found["adapters_whole"] == (-0.45, 0.45, 101)


def test_few_rows_or_one_source_take_the_wider_of_all_rows() -> None:
    found = widths(
        {
            "full_whole": rows(-0.3, 0.3, 101, "a", "b"),
            "full_gathered": rows(-0.01, 0.01, 5, "a", "b"),
            "adapters_whole": rows(-0.01, 0.01, 50, "a"),
        }
    )
    assert found["full_gathered"][0] < -0.1
    assert found["full_gathered"][:2] == found["adapters_whole"][:2] == found["others"][:2]


def test_no_interval_is_narrower_than_the_least() -> None:
    found = widths({group: rows(-0.001, 0.001, 20, "a", "b") for group in GROUPS})
    assert {each[:2] for each in found.values()} == {(-NARROWEST, NARROWEST)}


def test_the_table_has_every_group() -> None:
    intervals = load_fitted().intervals
    assert set(intervals) == set(GROUPS)
    assert all(low <= -NARROWEST < NARROWEST <= high for low, high in intervals.values())
