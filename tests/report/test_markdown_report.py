"""Markdown that a Markdown parser reads as it was meant: tables of equal rows, and hostile names taken literally."""

from __future__ import annotations

import made_budgets
import pytest
import recorded_estimates
from hypothesis import given, settings
from markdown_it import MarkdownIt

from memplan.domain.budget import MemoryBudget
from memplan.report import comparison, working
from memplan.report.layout import printable
from memplan.report.markdown import escape, markdown_holders, markdown_report

PARSER = MarkdownIt("commonmark").enable("table")


def tables(text: str) -> list[list[list[str]]]:
    """Every table of a Markdown text, as rows of the plain text of their cells."""
    found: list[list[list[str]]] = []
    is_cell = False
    for token in PARSER.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and is_cell:
            found[-1][-1].append("".join(child.content for child in token.children or ()))
        is_cell = token.type in ("th_open", "td_open")
    return found


def kinds(text: str) -> list[str]:
    """The kinds of everything that a parser finds: blocks, and what is inside of them."""
    found = []
    for token in PARSER.parse(text):
        found.append(token.type)
        found += [child.type for child in token.children or ()]
    return found


@pytest.mark.parametrize("name", recorded_estimates.names())
def test_the_tables_of_a_recorded_estimate_parse_with_rows_of_equal_length(name: str) -> None:
    budget = recorded_estimates.read_budget(name)
    found = tables(markdown_report([budget]))
    assert len(found) >= 3
    for table in found:
        assert len({len(row) for row in table}) == 1
    shown = working.line_rows(budget)
    assert [row[1] for row in found[0][1:]] == [row.size for row in shown]
    assert [row[4] for row in found[0][1:]] == [row.working for row in shown]


def test_a_comparison_parses_into_the_cells_that_it_was_made_of() -> None:
    budgets = made_budgets.several()
    assert tables(markdown_report(budgets))[0] == comparison.matrix(budgets, comparison.FULL)


def test_hostile_names_are_taken_literally() -> None:
    budget = made_budgets.hostile()
    text = markdown_report([budget])
    parsed = kinds(text)
    assert not {"html_inline", "html_block", "link_open", "image", "em_open"} & set(parsed)
    assert "\x1b" not in text
    literal = " ".join(printable(made_budgets.HOSTILE).split())
    headings = [token.children for token in PARSER.parse(text) if token.type == "inline" and token.level == 1]
    title = "".join(child.content for child in headings[0] or ())
    assert literal in " ".join(title.split())
    for table in tables(text):
        assert len({len(row) for row in table}) == 1


@settings(max_examples=60)
@given(budget=made_budgets.any_budget())
def test_any_text_comes_back_out_of_the_table_of_lines(budget: MemoryBudget) -> None:
    found = tables(markdown_report([budget]))
    for table in found:
        assert len({len(row) for row in table}) == 1
    meant = [[row.name, row.working, row.source] for row in working.line_rows(budget)]
    read = [[row[0].strip("\u2003"), row[4], row[5]] for row in found[0][1:]]
    assert [[plain(text) for text in row] for row in read] == [[plain(text) for text in row] for row in meant]


def plain(text: str) -> str:
    """A text as a table's cell shows it: on one line, without space around it."""
    return " ".join(printable(text).split())


def test_an_escaped_text_is_read_as_it_was_written() -> None:
    for text in ("a|b", "`x` *y* _z_ [l](u) <b> &amp; ~~s~~ #1 \\", "gpu_memory_utilization"):
        inline = PARSER.parse("x " + escape(text))[1]
        assert "".join(child.content for child in inline.children or ()) == "x " + text


def test_the_gpus_that_hold_a_model_are_a_table_by_price() -> None:
    found = tables(markdown_holders(made_budgets.holders()))
    assert [row[0] for row in found[0][1:]] == ["2 x cheap-16g", "dear-80g", "no-price-48g"]
