"""The page of one budget: nothing wraps, nothing is lost, colours change nothing, and the numbers are the budget's."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import made_budgets
import pytest
import recorded_estimates
from hypothesis import given
from hypothesis import strategies as st

from memplan.domain.budget import MemoryBudget, Remedy
from memplan.domain.remedies import cheapest_remedy, flags_to_type
from memplan.report import working
from memplan.report.layout import Style, printable, table, wrap
from memplan.report.side_by_side import render_side_by_side
from memplan.report.text import render_budget, render_verdict
from memplan.units import GIB

ANSI = re.compile(r"\x1b\[[0-9;]*m")
WIDTHS = st.integers(min_value=80, max_value=160)


@given(budget=made_budgets.any_budget(), width=WIDTHS)
def test_no_line_of_a_page_is_wider_than_the_terminal(budget: MemoryBudget, width: int) -> None:
    assert max(len(line) for line in render_budget(budget, Style(width=width)).splitlines()) <= width


@given(budget=made_budgets.any_budget(), width=WIDTHS)
def test_a_page_without_its_colours_is_the_plain_page(budget: MemoryBudget, width: int) -> None:
    colored = render_budget(budget, Style(width=width, color=True))
    assert ANSI.sub("", colored) == render_budget(budget, Style(width=width))


@given(budget=made_budgets.any_budget(), width=WIDTHS)
def test_no_text_of_a_budget_is_cut_off(budget: MemoryBudget, width: int) -> None:
    shown = "".join(render_budget(budget, Style(width=width)).split())
    texts = [line.formula for line in budget.lines if line.size_bytes] + list(budget.warnings)
    for text in texts:
        for word in printable(text).split():
            assert word in shown or len(word) > width // 3


@given(text=st.text(), width=st.integers(min_value=1, max_value=120), indent=st.sampled_from(["", "  "]))
def test_wrapping_keeps_every_character_and_the_width(text: str, width: int, indent: str) -> None:
    lines = wrap(text, width + len(indent), indent=indent)
    assert "".join("".join(lines).split()) == "".join(printable(text).split())
    lead = len(printable(text)) - len(printable(text).lstrip())
    assert all(len(line) <= width + len(indent) for line in lines) or lead


def test_a_column_of_sizes_is_set_to_the_right() -> None:
    text = table([["a", "1", "x"], ["bb", "1,000", ""]], Style(width=80), right=frozenset({1}))
    assert text == "a       1  x\nbb  1,000"


def test_control_characters_of_a_name_never_reach_the_terminal() -> None:
    page = render_budget(made_budgets.hostile(), Style(width=100))
    assert all(char == "\n" or char.isprintable() for char in page)
    line = render_verdict(made_budgets.hostile(), Style(), named=True)
    assert line.count("\n") == 1
    assert "\x1b" not in line


@given(budget=made_budgets.any_budget(), width=WIDTHS)
def test_the_bar_has_the_width_of_the_page_and_a_cell_for_every_part(budget: MemoryBudget, width: int) -> None:
    page = render_budget(budget, Style(width=width))
    bar = next(line for line in page.splitlines() if line.startswith("[") and line.endswith("]"))
    assert len(bar) == min(width, 100)
    assert len(set(bar) - set("[]")) == len(working.segments(budget))


@given(budget=made_budgets.any_budget(), unused_bytes=st.none() | st.integers(min_value=0, max_value=1 << 36))
def test_what_is_left_and_the_lines_make_the_whole_gpu(budget: MemoryBudget, unused_bytes: int | None) -> None:
    if unused_bytes is not None:
        budget = replace(budget, gpu_memory_bytes=budget.used_bytes + unused_bytes)
    left = [size for _, size, _ in working.rest(budget)]
    if budget.used_bytes <= budget.gpu_memory_bytes:
        assert budget.used_bytes + sum(left) == budget.gpu_memory_bytes
    else:
        assert budget.used_bytes - sum(left) == budget.gpu_memory_bytes
    assert all(size >= 0 for size in left)


def test_what_utilization_leaves_to_others_has_a_row_of_its_own() -> None:
    budget = made_budgets.fitting()
    lines = tuple(
        replace(line, size_bytes=5 * GIB + 849 * (1 << 20)) if line.group == "kv_cache" else line
        for line in budget.lines
    )
    page = render_budget(replace(budget, lines=lines), Style(width=120))
    assert re.search(r"left to others by utilization +1\.\d\d GiB .*\(1 - 0\.9\) x 24\.00 GiB", page)


def test_an_idle_part_of_the_budget_is_not_called_left_to_others() -> None:
    budget = made_budgets.encoder()
    names = [name for name, _, _ in working.rest(budget)]
    assert names == ["left to others by utilization", "free within the budget"]


def test_one_token_is_priced_in_kib() -> None:
    page = render_budget(made_budgets.fitting(), Style())
    assert "one token takes  128 KiB" in page
    fifth = replace(made_budgets.fitting(), kv=replace(made_budgets.fitting().kv, bytes_per_token=320 * 1024))
    assert "320 KiB" in render_budget(fifth, Style())


def test_the_verdict_says_by_how_much_and_the_cheapest_change() -> None:
    page = render_budget(made_budgets.too_large(), Style(width=120))
    assert "DOES NOT FIT: 25.00 GiB short on the GPU for 4 requests of 8,192 tokens." in page
    assert "Cheapest change that mends it: --quant awq-int4-g128 (check quality first)" in page
    assert "> --quant awq-int4-g128" in page
    assert page.rstrip().endswith("hint: run it again with `--quant awq-int4-g128`")


def test_a_fitting_budget_names_no_change_to_mend_it() -> None:
    page = render_budget(made_budgets.fitting(), Style(width=120))
    assert "FITS: there is room for 5 requests of 8,192 tokens at once, 4 asked for." in page
    assert "mends" not in page


@pytest.mark.parametrize(
    ("changes", "cheapest"),
    [
        ((("--tp 2", "fits"), ("--quant fp8", "fits"), ("--context 8192 -> 4096", "fits")), "--context 8192 -> 4096"),
        ((("--tp 4", "fits"), ("--tp 2", "fits")), "--tp 2"),
        ((("--gpu-memory-utilization 0.9 -> 0.95", "tight"), ("--tp 2", "fits")), "--tp 2"),
        ((("--eager", "tight"), ("--tp 2", "does_not_fit")), "--eager"),
        ((("--eager", "does_not_fit"),), None),
        ((("--quant fp8 --tp 2", "fits"), ("--tp 2", "fits")), "--tp 2"),
    ],
)
def test_the_cheapest_change_takes_least_from_its_user(
    changes: tuple[tuple[str, str], ...], cheapest: str | None
) -> None:
    size = {"--tp 4": 9}
    remedies = tuple(
        Remedy(change=change, saves_bytes=size.get(change, 3) * GIB, verdict=verdict)  # type: ignore[arg-type]
        for change, verdict in changes
    )
    found = cheapest_remedy(replace(made_budgets.too_large(), remedies=remedies))
    assert (found.change if found else None) == cheapest


def test_a_change_that_leaves_a_budget_tight_does_not_mend_a_tight_one() -> None:
    remedies = (Remedy(change="--eager", saves_bytes=1, verdict="tight"),)
    assert cheapest_remedy(replace(made_budgets.tight(), remedies=remedies)) is None
    page = render_budget(replace(made_budgets.tight(), remedies=remedies), Style(width=120))
    assert "No single change mends it." in page


def test_a_change_is_typed_as_its_new_value() -> None:
    assert flags_to_type("--max-num-seqs 1024 -> 256") == "--max-num-seqs 256"
    assert flags_to_type("--a 1 -> 2 --eager --b x -> y") == "--a 2 --eager --b y"
    assert flags_to_type("->") == ""


@pytest.mark.parametrize("name", recorded_estimates.names())
@pytest.mark.parametrize("width", [80, 97, 140])
def test_no_line_of_a_recorded_estimate_is_wider_than_the_terminal(name: str, width: int) -> None:
    budget = recorded_estimates.read_budget(name)
    texts = render_budget(budget, Style(width=width)), render_side_by_side([budget, budget], Style(width=width))
    assert max(len(line) for text in texts for line in text.splitlines()) <= width


def test_a_page_imports_no_table_library_and_no_parser() -> None:
    script = (
        "import sys, memplan.domain.budget, memplan.units; before = set(sys.modules); import memplan.report.text;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(name.startswith("memplan.") for name in done.stdout.split()), done.stdout
