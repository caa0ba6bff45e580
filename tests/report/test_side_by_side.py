"""Several budgets in one table, and the GPUs that hold a model."""

from __future__ import annotations

import re
from dataclasses import replace

import made_budgets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import Price
from memplan.report import comparison
from memplan.report.side_by_side import render_holders, render_side_by_side
from memplan.report.text import Style, render_verdict

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@settings(max_examples=60)
@given(
    budgets=st.lists(made_budgets.any_budget(), min_size=2, max_size=5),
    width=st.integers(min_value=80, max_value=200),
)
def test_no_line_of_a_comparison_is_wider_than_the_terminal(budgets: list[MemoryBudget], width: int) -> None:
    text = render_side_by_side(budgets, Style(width=width))
    assert max(len(line) for line in text.splitlines()) <= width
    assert ANSI.sub("", render_side_by_side(budgets, Style(width=width, color=True))) == text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_every_budget_shows_its_sizes_and_its_answer_at_any_width(width: int) -> None:
    text = render_side_by_side(made_budgets.several(), Style(width=width))
    for cell in ("15.00", "45.00", "25.00", "5.78", "47,360", "awq-int4-g128", "sglang 0.5.1", "tight", "0.80-1.40"):
        assert cell in text


def test_a_table_that_is_too_wide_turns_on_its_side_and_loses_no_number() -> None:
    wide = render_side_by_side(made_budgets.several(), Style(width=220))
    narrow = render_side_by_side(made_budgets.several(), Style(width=80))
    numbers = set(re.findall(r"\d[\d,.]*\d", wide.split("Sizes are")[0]))
    assert len(numbers) > 15
    assert numbers <= set(re.findall(r"\d[\d,.]*\d", narrow))


def test_what_all_budgets_share_is_said_once_and_has_no_column() -> None:
    budget = made_budgets.fitting()
    head, *_ = comparison.matrix([budget, replace(budget, gpu_name="other")], comparison.FULL)
    assert "engine" not in head
    assert "weights in" not in head
    text = render_side_by_side([budget, replace(budget, gpu_name="other")], Style(width=160))
    assert text.count("vllm 0.10.2") == 1
    assert text.count("4 requests of 8,192 tokens") == 1


def test_budgets_keep_the_order_in_which_they_were_asked() -> None:
    budgets = made_budgets.several()
    text = render_side_by_side(budgets[::-1], Style(width=160))
    assert text.index("sglang") < text.index("a-gpu-with") < text.index("awq-int4-g128")


def test_every_budget_that_does_not_fit_is_mended() -> None:
    found = dict(comparison.remedies(made_budgets.several()))
    assert len(found) == 2
    assert any("--quant awq-int4-g128" in change for change in found.values())


def test_a_warning_of_all_budgets_is_said_once() -> None:
    budgets = made_budgets.several()
    assert len(comparison.warnings(budgets)) == 1
    one = replace(budgets[0], warnings=("only here",))
    assert "only here" in comparison.warnings([one, *budgets[1:]])[0]
    assert comparison.warnings([one, *budgets[1:]])[0].startswith("rtx-0000, awq-int4-g128")


def test_gpus_are_sorted_by_price_then_by_memory() -> None:
    holders = made_budgets.holders()
    assert [budget.gpu_name for budget in comparison.by_price(holders.budgets)] == [
        "cheap-16g",
        "dear-80g",
        "no-price-48g",
    ]
    assert [budget.gpu_name for budget in comparison.by_memory(holders.budgets)] == [
        "cheap-16g",
        "no-price-48g",
        "dear-80g",
    ]


def test_the_price_is_for_all_gpus_of_a_row() -> None:
    budget = replace(made_budgets.fitting(), num_gpus=8, price=Price(low=2.0, high=2.5, source="Cloud"))
    other = replace(budget, num_gpus=4)
    text = render_side_by_side([budget, other], Style(width=200))
    assert "16.00-20.00" in text
    assert "8.00-10.00" in text


def test_no_gpu_that_holds_a_model_is_said_in_words() -> None:
    text = render_holders(replace(made_budgets.holders(), budgets=()), Style(width=80))
    assert "no GPU of the catalogue holds it" in text
    assert "15.00 GiB" in text


def test_a_verdict_takes_one_line() -> None:
    for budget in made_budgets.several():
        line = render_verdict(budget, Style(), named=True)
        assert line.count("\n") == 1
        assert budget.gpu_name in line
