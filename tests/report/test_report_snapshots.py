"""What the reports look like, kept as plain files; hand-built budgets show every part, recorded ones show real life."""

from __future__ import annotations

from collections.abc import Callable

import made_budgets
import pytest
import recorded_estimates
from snapshots import check_snapshot

from memplan.domain.budget import MemoryBudget
from memplan.report.html import html_holders, html_report
from memplan.report.json_report import estimate_json, holders_json
from memplan.report.markdown import markdown_holders, markdown_report
from memplan.report.side_by_side import render_holders, render_side_by_side
from memplan.report.text import Style, render_budget, render_verdict

MADE: dict[str, Callable[[], MemoryBudget]] = {
    "fitting": made_budgets.fitting,
    "too-large": made_budgets.too_large,
    "tight": made_budgets.tight,
    "encoder": made_budgets.encoder,
}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", MADE)
def test_the_page_of_a_made_budget_is_as_it_was(name: str, width: int) -> None:
    check_snapshot(f"page-{name}-{width}.txt", render_budget(MADE[name](), Style(width=width)))


@pytest.mark.parametrize("name", recorded_estimates.names())
def test_the_page_of_a_recorded_estimate_is_as_it_was(name: str) -> None:
    check_snapshot(f"page-{name}.txt", render_budget(recorded_estimates.read_budget(name), Style(width=100)))


def test_a_page_with_colours_is_as_it_was() -> None:
    check_snapshot("page-too-large-color.txt", render_budget(made_budgets.too_large(), Style(width=100, color=True)))


def test_a_page_without_block_characters_is_as_it_was() -> None:
    text = render_budget(made_budgets.fitting(), Style(width=80, unicode=False))
    assert text.isascii()
    check_snapshot("page-fitting-ascii.txt", text)


def test_verdicts_in_one_line_are_as_they_were() -> None:
    lines = [render_verdict(make(), Style()) for make in MADE.values()]
    named = [render_verdict(budget, Style(), named=True) for budget in made_budgets.several()]
    check_snapshot("verdicts.txt", "".join([*lines, *named]))


@pytest.mark.parametrize("width", [80, 120, 160])
def test_several_budgets_side_by_side_are_as_they_were(width: int) -> None:
    check_snapshot(f"side-by-side-{width}.txt", render_side_by_side(made_budgets.several(), Style(width=width)))


def test_recorded_estimates_side_by_side_are_as_they_were() -> None:
    budgets = [recorded_estimates.read_budget(name) for name in recorded_estimates.names()]
    check_snapshot("side-by-side-recorded.txt", render_side_by_side(budgets, Style(width=120)))


@pytest.mark.parametrize("width", [80, 120])
def test_the_gpus_that_hold_a_model_are_as_they_were(width: int) -> None:
    check_snapshot(f"holders-{width}.txt", render_holders(made_budgets.holders(), Style(width=width)))


def test_markdown_is_as_it_was() -> None:
    check_snapshot("one.md", markdown_report([made_budgets.fitting()]))
    check_snapshot("several.md", markdown_report(made_budgets.several()))
    check_snapshot("holders.md", markdown_holders(made_budgets.holders()))


def test_html_is_as_it_was() -> None:
    check_snapshot("one.html", html_report([made_budgets.fitting()]))
    check_snapshot("several.html", html_report(made_budgets.several()))
    check_snapshot("holders.html", html_holders(made_budgets.holders()))


def test_json_is_as_it_was() -> None:
    check_snapshot("one.json", estimate_json([made_budgets.fitting()]))
    check_snapshot("holders.json", holders_json(made_budgets.holders()))
