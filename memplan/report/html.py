"""Budgets as one self-contained HTML page: no script, no font, no image, nothing fetched from anywhere.

It reads in light and dark, on paper, and by ear. Whatever comes from a model or a file is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape as escape_html

from memplan.domain.budget import MemoryBudget
from memplan.domain.holders import Holders
from memplan.domain.remedies import cheapest_remedy
from memplan.report import comparison, html_figures, words, working
from memplan.report.html_style import style_sheet
from memplan.report.layout import printable
from memplan.units import format_gib

_ABOUT = (
    "Sizes are per GPU, of the fullest rank; 1 GiB is 2^30 bytes. Intervals hold the real value in nine runs of ten. "
    "Exact: read from a file's header. Derived: a formula over the architecture. Measured: on a recorded run. "
    "Modelled: with a constant fitted to recorded runs. Assumed: nothing better is known."
)


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
    body += [_comparison(budgets, comparison.FULL, names), _mending(budgets), *_notes(comparison.warnings(budgets))]
    for budget, name in zip(budgets, names, strict=True):
        body.append(f'<h2 id="{name}">{escape(words.label(budget))}</h2>{_budget(budget, name)}')
    return page(title, body)


def html_holders(holders: Holders) -> str:
    """Return a page of what a model needs and the GPUs that hold it, the cheapest first."""
    title = words.model_title(holders.model_name, holders.parameters)
    budgets = comparison.by_price(holders.budgets)
    body = [f"<h1>{escape(title)}</h1>", '<h2 class="first">What it needs</h2>', _pairs(comparison.needs(holders))]
    body.append('<h2 class="first">GPUs that hold it</h2>')
    body.append(_comparison(budgets, comparison.SHORT, ()) if budgets else "<p>No GPU of the catalogue holds it.</p>")
    if holders.left_out:
        body.append(f'<p class="note">Do not hold it: {escape(", ".join(holders.left_out))}.</p>')
    return page(title, [*body, *_notes(comparison.warnings(budgets))])


def escape(text: str) -> str:
    """Return `text` with everything that HTML would read taken literally."""
    return escape_html(printable(text))


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole page around `body`: its head, the style sheet and the foot."""
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style_sheet()}\n</style>"
    )
    content = "\n".join(part for part in body if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n<main>\n{content}\n'
        f"<footer><p>{escape(_ABOUT)}</p><p>Written by memplan.</p></footer>\n</main>\n</body>\n</html>\n"
    )


def _budget(budget: MemoryBudget, name: str) -> str:
    each = words.each_gpu(budget)
    parts = [
        f'<p class="sub">{escape(_where(budget))}</p>',
        _verdict(budget),
        _figure(f"What {each} would hold", html_figures.bar(budget, name), html_figures.legend(budget)),
        _figure("Every group with its 90 % interval", html_figures.intervals(budget, name)),
        f"<h3>Every byte of {escape(each)}</h3>{_lines(budget)}",
        _titled("KV cache", _pairs(words.capacity(budget))),
        _titled("Knobs", _knobs(budget)),
        _titled("Requests at once", _context_map(budget, name)),
        _titled("Waste of the KV cache", _waste(budget)),
        _settings(budget),
        *_notes(budget.warnings),
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


def _figure(caption: str, svg: str, below: str = "") -> str:
    shown = _scroll(svg, caption)
    return f"<figure><figcaption>{escape(caption)}</figcaption>{shown}{below}</figure>"


def _scroll(content: str, name: str) -> str:
    """What may be wider than a phone scrolls by itself, also by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{content}</div>'


def _lines(budget: MemoryBudget) -> str:
    head = ("line", "size", "90 % interval", "how known", "working", "source")
    rows = []
    for row in working.line_rows(budget):
        texts = [row.name.strip(), row.size, row.interval, row.known, row.working, row.source]
        kind = "sum" if row.kind == "group" else "part" if row.name.startswith(" ") else row.kind
        rows.append(_row(texts, kind))
    return _table(f"What {words.each_gpu(budget)} would hold, line by line", head, rows, kind="lines")


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
    return _table(caption, ("change", "returns", "then it", "note"), rows, right=(1,)) if rows else ""


def _context_map(budget: MemoryBudget, name: str) -> str:
    if budget.context_map is None:
        return ""
    about = "Part of the KV cache that so many requests (rows) of a length in tokens (columns) take; - has no room."
    return _figure(about, html_figures.context_map(budget.context_map, name))


def _waste(budget: MemoryBudget) -> str:
    rows = [_row(list(row), right=(1, 2)) for row in words.waste(budget)]
    if not rows:
        return ""
    caption = f"On {words.waste_title(budget)} tokens"
    return _table(caption, ("cache", "wasted", "requests at once"), rows)


def _settings(budget: MemoryBudget) -> str:
    if not budget.settings:
        return ""
    rows = [_row([name, words.setting(value)], right=()) for name, value in budget.settings.items()]
    table = _table("Every setting used, defaults filled in", ("setting", "value"), rows, right=())
    return _titled("Settings", table)


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
    return _table("Side by side", head, drawn, right=right, kind="wide") + f'<p class="note">{escape(about)}</p>'


def _mending(budgets: Sequence[MemoryBudget]) -> str:
    found = comparison.remedies(budgets)
    return f"<h3>Cheapest change that mends it</h3>{_pairs(found)}" if found else ""


def _notes(warnings: Sequence[str]) -> list[str]:
    return [f'<p class="note">Note: {escape(warning)}</p>' for warning in warnings]


def _titled(title: str, body: str) -> str:
    return f"<h3>{escape(title)}</h3>{body}" if body else ""


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f"<dl>{items}</dl>" if items else ""


def _row(texts: Sequence[str], kind: str = "", right: Sequence[int] = (1, 2)) -> str:
    first = f'<th scope="row">{escape(texts[0])}</th>'
    cells = [
        f'<td class="n">{escape(text)}</td>' if column in right else f"<td>{escape(text)}</td>"
        for column, text in enumerate(texts[1:], start=1)
    ]
    mark = f' class="{kind}"' if kind else ""
    return f"<tr{mark}>{first}{''.join(cells)}</tr>"


def _table(
    caption: str, head: Sequence[str], rows: Sequence[str], right: Sequence[int] = (1, 2), *, kind: str = ""
) -> str:
    """A table of rows that are drawn already; its caption is what it says to a screen reader, too."""
    titles = "".join(
        f'<th scope="col" class="n">{escape(name)}</th>' if column in right else f'<th scope="col">{escape(name)}</th>'
        for column, name in enumerate(head)
    )
    about = f"<caption>{escape(caption)}</caption>"
    body = f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return _scroll(f"<table{f' class={kind}' if kind else ''}>{about}{body}</table>", caption)
