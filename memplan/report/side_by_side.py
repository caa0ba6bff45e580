"""Several budgets in one table for a terminal, and the GPUs that hold a model.

A table that is too wide for the page first adds up the smaller terms, then turns on its side: a budget becomes a
column, and what has no room beside goes below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from memplan.domain.budget import MemoryBudget
from memplan.domain.holders import Holders
from memplan.report import comparison, words
from memplan.report.layout import Cell, Style, paragraph, printable, table

_BOLD, _DIM = "1", "2"
_OUTCOME_CODES = {"yes": "32", "tight": "33", "no": "31"}


def render_side_by_side(budgets: Sequence[MemoryBudget], style: Style, *, hint: str | None = None) -> str:
    """Return several budgets in one table, in the order they come in, and what mends those that do not fit."""
    remedies = comparison.remedies(budgets)
    rows: list[list[Cell]] = [[name, change] for name, change in remedies]
    mending = f"{style.paint('cheapest change that mends it', _BOLD)}\n{_pairs(rows, style)}" if rows else ""
    sections = [
        _head(budgets, style),
        _table(budgets, (comparison.FULL, comparison.SHORT), style),
        mending,
        *_notes(budgets, style),
        paragraph(hint or "name one GPU and one scheme for the whole page of a budget", style, indent="hint: "),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def render_holders(
    holders: Holders, style: Style, *, by: Literal["price", "memory"] = "price", hint: str | None = None
) -> str:
    """Return what a model needs and the GPUs that hold it, the cheapest or the smallest first."""
    order = comparison.by_price if by == "price" else comparison.by_memory
    budgets = order(holders.budgets)
    title = paragraph(words.model_title(holders.model_name, holders.parameters), style, indent="", code=_BOLD)
    needs: list[list[Cell]] = [[(name, _DIM), value] for name, value in comparison.needs(holders)]
    sections = [f"{title}\n{style.paint('what it needs', _BOLD)}\n{_pairs(needs, style)}"]
    if budgets:
        facts = ", ".join(comparison.shared_facts(budgets)[1:])
        first = "the cheapest first" if by == "price" else "the smallest first"
        heading = paragraph(f"GPUs that hold it, {first}: {facts}", style, indent="", code=_BOLD)
        sections.append(f"{heading}\n{_table(budgets, (comparison.SHORT, comparison.SHORTEST), style)}")
        sections += _notes(budgets, style)
        best = next((budget for budget in budgets if budget.verdict == "fits"), budgets[0])
        hint = hint or f"`--gpu {_as_typed(best)}` shows the whole budget on that GPU"
    else:
        sections.append(style.paint("no GPU of the catalogue holds it", "1;31"))
    if holders.left_out:
        sections.append(paragraph(f"do not hold it: {', '.join(holders.left_out)}", style, indent=""))
    if hint:
        sections.append(paragraph(hint, style, indent="hint: ", hang="      "))
    return "\n\n".join(section for section in sections if section) + "\n"


def _as_typed(budget: MemoryBudget) -> str:
    return f"{budget.gpu_name}x{budget.num_gpus}" if budget.num_gpus > 1 else budget.gpu_name


def _head(budgets: Sequence[MemoryBudget], style: Style) -> str:
    same_model = len({budget.model_name for budget in budgets}) == 1
    facts = comparison.shared_facts(budgets)
    lines = [paragraph(facts.pop(0), style, indent="", code=_BOLD)] if same_model else []
    return "\n".join([*lines, paragraph(", ".join(facts), style, indent="")] if facts else lines)


def _pairs(rows: list[list[Cell]], style: Style) -> str:
    return table(rows, style, right=frozenset(), indent="  ")


def _notes(budgets: Sequence[MemoryBudget], style: Style) -> list[str]:
    sources = words.price_sources(budgets)
    notes = [paragraph(f"prices: on demand, {sources}", style, indent="note: ", hang="      ")] if sources else []
    notes += [paragraph(text, style, indent="note: ", hang="      ") for text in comparison.warnings(budgets)]
    return ["\n".join(notes)] if notes else []


def _table(budgets: Sequence[MemoryBudget], choices: Sequence[Sequence[str]], style: Style) -> str:
    """The fullest table that the page has room for, and what its columns hold."""
    for columns in choices:
        rows = comparison.matrix(budgets, columns)
        if sum(_widths(rows)) + 2 * (len(rows[0]) - 1) <= style.width:
            body = _drawn(rows, style)
            break
    else:
        rows = comparison.matrix(budgets, choices[0])
        body = "\n\n".join(_turned(rows, style))
    return f"{body}\n{paragraph(comparison.explained(rows[0]), style, indent='', code=_DIM)}"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(printable(row[column])) for row in rows) for column in range(len(rows[0]))]


def _drawn(rows: list[list[str]], style: Style) -> str:
    head = rows[0]
    right = frozenset(number for number, name in enumerate(head) if name not in comparison.TEXT_COLUMNS)
    cells: list[list[Cell]] = [[(name, _DIM) for name in head]]
    cells += [[_cell(name, text) for name, text in zip(head, row, strict=True)] for row in rows[1:]]
    return table([[*row, ""] for row in cells], style, right=right)


def _turned(rows: list[list[str]], style: Style) -> list[str]:
    """The table on its side, in as many parts as the page's width asks for."""
    head, *budgets = rows
    first = max(len(name) for name in head)
    parts: list[list[list[str]]] = [[]]
    reached = first
    for budget in budgets:
        width = max(len(printable(text)) for text in budget)
        if parts[-1] and reached + 2 + width > style.width:
            parts.append([])
            reached = first
        reached += 2 + width
        parts[-1].append(budget)
    drawn = []
    for part in parts:
        cells: list[list[Cell]] = [
            [(name, _DIM), *(_cell(name, budget[number]) for budget in part), ""] for number, name in enumerate(head)
        ]
        drawn.append(table(cells, style, right=frozenset(range(1, len(part) + 1))))
    return drawn


def _cell(column: str, text: str) -> Cell:
    return (text, _OUTCOME_CODES[text]) if column == "fits" else text
