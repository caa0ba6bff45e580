"""Budgets as one self-contained HTML page: no script, no font, no image, nothing fetched from anywhere.

It reads in light and dark, on paper, and by ear. Whatever comes from a model or a file is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.budget import MemoryBudget
from memplan.domain.holders import Holders
from memplan.domain.remedies import cheapest_remedy
from memplan.report import comparison, html_figures, words, working
from memplan.report.html_parts import data_table, escape, figure, notes, page, pairs, table_row, titled
from memplan.units import format_gib


def html_report(budgets: Sequence[MemoryBudget]) -> str:
    """Return a page of one budget, or of several with a table of them all first."""
    if len(budgets) == 1:
        title = words.title(budgets[0])
        body = [f"<h1>{escape(title)}</h1>", _budget(budgets[0], "b1")]
        return page(f"{title} on {words.gpus(budgets[0])}", body)
    names = [f"b{number}" for number in range(1, len(budgets) + 1)]
    facts = comparison.shared_facts(budgets)
    title = facts[0] if facts else "GPU memory, side by side"
    body = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{escape(", ".join(facts[1:]))}</p>']
    body += [_comparison(budgets, comparison.FULL, names), _mending(budgets), *notes(comparison.warnings(budgets))]
    for budget, name in zip(budgets, names, strict=True):
        body.append(f'<h2 id="{name}">{escape(words.label(budget))}</h2>{_budget(budget, name)}')
    return page(title, body)


def html_holders(holders: Holders) -> str:
    """Return a page of what a model needs and the GPUs that hold it, the cheapest first."""
    title = words.model_title(holders.model_name, holders.parameters)
    budgets = comparison.by_price(holders.budgets)
    body = [f"<h1>{escape(title)}</h1>", '<h2 class="first">What it needs</h2>', pairs(comparison.needs(holders))]
    body.append('<h2 class="first">GPUs that hold it</h2>')
    body.append(_comparison(budgets, comparison.SHORT, ()) if budgets else "<p>No GPU of the catalogue holds it.</p>")
    if holders.left_out:
        body.append(f'<p class="note">Do not hold it: {escape(", ".join(holders.left_out))}.</p>')
    return page(title, [*body, *notes(comparison.warnings(budgets))])


def _budget(budget: MemoryBudget, name: str) -> str:
    each = words.each_gpu(budget)
    parts = [
        f'<p class="sub">{escape(_where(budget))}</p>',
        _verdict(budget),
        figure(f"What {each} would hold", html_figures.bar(budget, name), html_figures.legend(budget)),
        figure("Every group with its 90 % interval", html_figures.intervals(budget, name)),
        f"<h3>Every byte of {escape(each)}</h3>{_lines(budget)}",
        titled("KV cache", pairs(words.capacity(budget))),
        titled("Knobs", _knobs(budget)),
        titled("Requests at once", _context_map(budget, name)),
        titled("Waste of the KV cache", _waste(budget)),
        _settings(budget),
        *notes(budget.warnings),
    ]
    return "\n".join(part for part in parts if part)


def _where(budget: MemoryBudget) -> str:
    dollars = words.price(budget)
    parts = [
        f"{words.gpus(budget)} ({format_gib(budget.gpu_memory_bytes)}{' each' if budget.num_gpus > 1 else ''})",
        words.engine(budget),
        f"weights in {words.scheme(budget)}" if words.scheme(budget) else "",
        f"${dollars} an hour" if dollars else "",
    ]
    return ", ".join(part for part in parts if part)


def _verdict(budget: MemoryBudget) -> str:
    word = words.VERDICTS[budget.verdict]
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in words.reasons(budget))
    mending = words.mending(budget)
    return (
        f'<div class="verdict {budget.verdict}"><p><span class="word">{word}</span>: '
        f"{escape(words.sentence(budget))}</p>"
        + (f"<ul>{reasons}</ul>" if reasons else "")
        + (f"<p>{escape(mending)}</p>" if mending else "")
        + "</div>"
    )


def _lines(budget: MemoryBudget) -> str:
    head = ("line", "size", "90 % interval", "how known", "working", "source")
    rows = []
    for row in working.line_rows(budget):
        texts = [row.name.strip(), row.size, row.interval, row.known, row.working, row.source]
        kind = "sum" if row.kind == "group" else "part" if row.name.startswith(" ") else row.kind
        rows.append(table_row(texts, kind))
    return data_table(f"What {words.each_gpu(budget)} would hold, line by line", head, rows, kind="lines")


def _knobs(budget: MemoryBudget) -> str:
    best = cheapest_remedy(budget)
    rows = []
    for remedy in budget.remedies:
        note = ", ".join(part for part in (remedy.note, "cheapest that mends it" if remedy is best else "") if part)
        cells = [
            f'<th scope="row"><code>{escape(remedy.change)}</code></th>',
            f'<td class="n">{format_gib(remedy.saves_bytes)}</td>',
            f'<td class="{remedy.verdict}">{words.VERDICTS[remedy.verdict].lower()}</td>',
            f"<td>{escape(note)}</td>",
        ]
        rows.append(f"<tr{' class=best' if remedy is best else ''}>{''.join(cells)}</tr>")
    caption = "Each change computed again as a whole budget, and what it returns on each GPU"
    return data_table(caption, ("change", "returns", "then it", "note"), rows, right=(1,)) if rows else ""


def _context_map(budget: MemoryBudget, name: str) -> str:
    if budget.context_map is None:
        return ""
    about = "Part of the KV cache that so many requests (rows) of a length in tokens (columns) take; - has no room."
    return figure(about, html_figures.context_map(budget.context_map, name))


def _waste(budget: MemoryBudget) -> str:
    rows = [table_row(list(row), right=(1, 2)) for row in words.waste(budget)]
    if not rows:
        return ""
    caption = f"On {words.waste_title(budget)} tokens"
    return data_table(caption, ("cache", "wasted", "requests at once"), rows)


def _settings(budget: MemoryBudget) -> str:
    if not budget.settings:
        return ""
    rows = [table_row([name, words.setting(value)], right=()) for name, value in budget.settings.items()]
    table = data_table("Every setting used, defaults filled in", ("setting", "value"), rows, right=())
    return titled("Settings", table)


def _comparison(budgets: Sequence[MemoryBudget], columns: Sequence[str], names: Sequence[str]) -> str:
    head, *rows = comparison.matrix(budgets, columns)
    right = [number for number, name in enumerate(head) if name not in comparison.TEXT_COLUMNS]
    drawn = []
    for number, (budget, row) in enumerate(zip(budgets, rows, strict=True)):
        cells = []
        for column, text in enumerate(row):
            kind = "n" if column in right else budget.verdict if head[column] == "fits" else ""
            shown = f'<a href="#{names[number]}">{escape(text)}</a>' if column == 0 and names else escape(text)
            tag = 'th scope="row"' if column == 0 else f'td class="{kind}"' if kind else "td"
            cells.append(f"<{tag}>{shown}</{tag[:2]}>")
        drawn.append(f"<tr>{''.join(cells)}</tr>")
    sources = words.price_sources(budgets)
    about = comparison.explained(head) + (f" Prices: on demand, {sources}." if sources else "")
    return data_table("Side by side", head, drawn, right=right, kind="wide") + f'<p class="note">{escape(about)}</p>'


def _mending(budgets: Sequence[MemoryBudget]) -> str:
    found = comparison.remedies(budgets)
    return f"<h3>Cheapest change that mends it</h3>{pairs(found)}" if found else ""
