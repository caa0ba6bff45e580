"""One budget as a page for a terminal of 80 columns or more.

Plain strings with optional ANSI colours: a table library would take longer to import than the whole answer takes.
"""

from __future__ import annotations

from memplan.domain.budget import MemoryBudget
from memplan.domain.remedies import cheapest_remedy
from memplan.report import figures, words, working
from memplan.report.layout import Cell, Style, paragraph, printable, table
from memplan.units import format_gib

__all__ = ["Style", "render_budget", "render_verdict"]

VERDICT_CODES = {"fits": "1;32", "tight": "1;33", "does_not_fit": "1;31"}
_OUTCOME_CODES = {"fits": "32", "tight": "33", "does_not_fit": "31"}
_BOLD, _DIM = "1", "2"
_RIGHT = frozenset({1})


def render_budget(budget: MemoryBudget, style: Style, *, hint: str | None = None) -> str:
    """Return the whole page of one budget. `hint` replaces the last line's advice on how to go on."""
    sections = [
        f"{_head(budget, style)}\n{verdict(budget, style)}",
        figures.bar(budget, style),
        _lines(budget, style),
        _capacity(budget, style),
        _knobs(budget, style),
        figures.context_map(budget.context_map, style) if budget.context_map else "",
        _waste(budget, style),
        "\n".join(paragraph(warning, style, indent="note: ", hang="      ") for warning in budget.warnings),
        paragraph(hint or words.next_step(budget), style, indent="hint: ", hang="      "),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def render_verdict(budget: MemoryBudget, style: Style, *, named: bool = False) -> str:
    """Return the answer in one line, with the first reason; `named` says which budget it is the answer for."""
    word = style.paint(words.VERDICTS[budget.verdict], VERDICT_CODES[budget.verdict])
    name = f"{printable(words.label(budget))}: " if named else ""
    said = [words.sentence(budget), *words.reasons(budget)[:1]]
    return f"{name}{word}: {printable(' '.join(said))}\n"


def verdict(budget: MemoryBudget, style: Style) -> str:
    """Return the verdict as a sentence, its reasons, and the cheapest change that mends it."""
    word = words.VERDICTS[budget.verdict]
    first = paragraph(f"{word}: {words.sentence(budget)}", style, indent="")
    lines = [style.paint(word, VERDICT_CODES[budget.verdict]) + first[len(word) :]]
    lines += [paragraph(reason, style, indent="  - ", hang="    ") for reason in words.reasons(budget)]
    mending = words.mending(budget)
    return "\n".join([*lines, paragraph(mending, style, indent="")] if mending else lines)


def _head(budget: MemoryBudget, style: Style) -> str:
    dollars = words.price(budget)
    where = [
        f"{words.gpus(budget)} ({format_gib(budget.gpu_memory_bytes)}{' each' if budget.num_gpus > 1 else ''})",
        words.engine(budget),
        f"weights in {words.scheme(budget)}" if words.scheme(budget) else "",
        f"${dollars} an hour" if dollars else "",
    ]
    title = paragraph(words.title(budget), style, indent="", code=_BOLD)
    return f"{title}\n{paragraph(', '.join(part for part in where if part), style, indent='')}"


def _lines(budget: MemoryBudget, style: Style) -> str:
    head = (f"on {words.each_gpu(budget)}", "size", "90 % interval", "how known", "working")
    rows: list[list[Cell]] = [[(name, _DIM) for name in head]]
    for row in working.line_rows(budget):
        strong = _BOLD if row.kind in ("group", "sum") else ""
        rows.append([(row.name, strong), (row.size, strong), row.interval, row.known, (row.working, _DIM)])
    return table(rows, style, right=_RIGHT)


def _capacity(budget: MemoryBudget, style: Style) -> str:
    pairs = words.capacity(budget)
    if not pairs:
        return ""
    rows: list[list[Cell]] = [[(name, _DIM), value] for name, value in pairs]
    return f"{style.paint('KV cache', _BOLD)}\n{table(rows, style, right=frozenset(), indent='  ')}"


def _knobs(budget: MemoryBudget, style: Style) -> str:
    if not budget.remedies:
        return ""
    best = cheapest_remedy(budget)
    rows: list[list[Cell]] = [[("  change", _DIM), ("returns", _DIM), ("fits", _DIM), ""]]
    for remedy in budget.remedies:
        outcome = (words.SHORT_VERDICTS[remedy.verdict], _OUTCOME_CODES[remedy.verdict])
        change = (f"> {remedy.change}", _BOLD) if remedy is best else f"  {remedy.change}"
        rows.append([change, format_gib(remedy.saves_bytes), outcome, remedy.note])
    title = style.paint(f"knobs, by what each returns on each {words.device(budget)}", _BOLD)
    mark = "; > mends it at the least cost" if best else ""
    return f"{title}{mark}\n{table(rows, style, right=_RIGHT, narrowest_first=38, narrowest_last=16)}"


def _waste(budget: MemoryBudget, style: Style) -> str:
    found = words.waste(budget)
    if not found:
        return ""
    rows: list[list[Cell]] = [[("cache", _DIM), ("wasted", _DIM), ("requests at once", _DIM), ""]]
    rows += [[kind, size, number, ""] for kind, size, number in found]
    title = style.paint(f"waste of the KV cache, {words.waste_title(budget)}", _BOLD)
    return f"{title}\n{table(rows, style, right=frozenset({1, 2}), indent='  ')}"
