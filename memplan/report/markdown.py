"""Budgets as GitHub-flavoured Markdown: a page for an issue, a pull request or a wiki.

Whatever comes from a model or a file is escaped: it may hold pipes, tags or backticks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from memplan.domain.budget import MemoryBudget
from memplan.domain.holders import Holders
from memplan.domain.remedies import cheapest_remedy
from memplan.report import comparison, figures, grid, words, working
from memplan.report.layout import Style, printable
from memplan.units import format_gib

_SPECIAL = re.compile(r"[\\`*\[\]<|~#&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_PLAIN = Style(width=88)


def markdown_report(budgets: Sequence[MemoryBudget]) -> str:
    """Return one budget as a page, or several as a table and a section each."""
    if len(budgets) == 1:
        return joined(_budget(budgets[0], f"# {escape(words.title(budgets[0]))}"))
    sections = [
        "# GPU memory, side by side",
        "\n".join(f"- {escape(fact)}" for fact in comparison.shared_facts(budgets)),
        *_comparison(budgets, comparison.FULL),
        *_remedies(budgets),
        *_notes(comparison.warnings(budgets)),
    ]
    for budget in budgets:
        sections += _budget(budget, f"## {escape(words.label(budget))}")
    return joined(sections)


def markdown_holders(holders: Holders) -> str:
    """Return what a model needs and the GPUs that hold it, the cheapest first."""
    budgets = comparison.by_price(holders.budgets)
    sections = [
        f"# {escape(words.model_title(holders.model_name, holders.parameters))}",
        "## What it needs",
        _pairs(comparison.needs(holders)),
        "## GPUs that hold it",
        *(_comparison(budgets, comparison.SHORT) if budgets else ["No GPU of the catalogue holds it."]),
        *_notes(comparison.warnings(budgets)),
    ]
    if holders.left_out:
        sections.append(f"Do not hold it: {escape(', '.join(holders.left_out))}.")
    return joined(sections)


def escape(text: str) -> str:
    """Return `text` with everything that Markdown or HTML would read taken literally, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", printable(text))


def code(text: str) -> str:
    """Return `text` as code in a line or a table's cell; a text with backticks of its own is only escaped."""
    plain = printable(text).strip()
    return f"`{plain.replace('|', chr(92) + '|')}`" if plain and "`" not in plain else escape(plain)


def joined(sections: Sequence[str]) -> str:
    """Return the parts of a page as a page; parts of nothing are left out."""
    return "\n\n".join(section for section in sections if section) + "\n"


def _budget(budget: MemoryBudget, heading: str) -> list[str]:
    depth = "#" * (heading.index(" ") + 1)
    return [
        heading,
        _where(budget),
        _verdict(budget),
        f"```text\n{figures.bar(budget, _PLAIN)}\n```",
        f"{depth} Every byte of {escape(words.each_gpu(budget))}",
        _lines(budget),
        *_titled(f"{depth} KV cache", _pairs(words.capacity(budget))),
        *_titled(f"{depth} Knobs", _knobs(budget)),
        *_titled(f"{depth} Requests at once", _context_map(budget)),
        *_titled(f"{depth} Waste of the KV cache", _waste(budget)),
        *_titled(f"{depth} Settings", _settings(budget)),
        *_notes(budget.warnings),
    ]


def _where(budget: MemoryBudget) -> str:
    dollars = words.price(budget)
    parts = [
        f"{words.gpus(budget)} ({format_gib(budget.gpu_memory_bytes)}{' each' if budget.num_gpus > 1 else ''})",
        words.engine(budget),
        f"weights in {words.scheme(budget)}" if words.scheme(budget) else "",
        f"${dollars} an hour" if dollars else "",
    ]
    return escape(", ".join(part for part in parts if part))


def _verdict(budget: MemoryBudget) -> str:
    lines = [f"**{words.VERDICTS[budget.verdict]}**: {escape(words.sentence(budget))}"]
    reasons = [f"- {escape(reason)}" for reason in words.reasons(budget)]
    mending = words.mending(budget)
    return "\n\n".join([*lines, *(["\n".join(reasons)] if reasons else []), *([escape(mending)] if mending else [])])


def _lines(budget: MemoryBudget) -> str:
    head = ("line", "size", "90 % interval", "how known", "working", "source")
    rows = []
    for row in working.line_rows(budget):
        indent = "&emsp;" if row.name.startswith(" ") else ""
        name, size = indent + escape(row.name.strip()), row.size
        if row.kind in ("group", "sum"):
            name, size = f"**{name}**", f"**{size}**"
        rows.append([name, size, *(escape(text) for text in (row.interval, row.known, row.working, row.source))])
    return markdown_table(head, rows, right={1, 2})


def _knobs(budget: MemoryBudget) -> str:
    best = cheapest_remedy(budget)
    rows = []
    for remedy in budget.remedies:
        change = f"**{code(remedy.change)}**" if remedy is best else code(remedy.change)
        note = ", ".join(part for part in (remedy.note, "cheapest that mends it" if remedy is best else "") if part)
        outcome = words.VERDICTS[remedy.verdict].lower()
        rows.append([change, format_gib(remedy.saves_bytes), outcome, escape(note)])
    return markdown_table(("change", "returns on each GPU", "then it", "note"), rows, right={1}) if rows else ""


def _context_map(budget: MemoryBudget) -> str:
    found = budget.context_map
    if found is None:
        return ""
    head = ("requests", *(grid.short_tokens(tokens) for tokens in found.context_tokens))
    rows = []
    for number in grid.counts(found):
        shares = (grid.share_of(number, limit) for limit in found.max_concurrency)
        rows.append([f"{number:,}", *("-" if share is None else f"{share * 100:.0f} %" for share in shares)])
    rows.append(["**at most**", *(f"**{grid.short_number(limit)}**" for limit in found.max_concurrency)])
    table = markdown_table(head, rows, right=set(range(len(head))))
    return (
        f"Part of the KV cache that so many requests of a length in tokens take; - where there is no room.\n\n{table}"
    )


def _waste(budget: MemoryBudget) -> str:
    rows = words.waste(budget)
    if not rows:
        return ""
    table = markdown_table(("cache", "wasted", "requests at once"), rows, right={1, 2})
    return f"On {escape(words.waste_title(budget))} tokens.\n\n{table}"


def _settings(budget: MemoryBudget) -> str:
    rows = [[code(name), escape(words.setting(value))] for name, value in budget.settings.items()]
    return markdown_table(("setting", "value"), rows, right=set()) if rows else ""


def _comparison(budgets: Sequence[MemoryBudget], columns: Sequence[str]) -> list[str]:
    head, *rows = comparison.matrix(budgets, columns)
    right = {number for number, name in enumerate(head) if name not in comparison.TEXT_COLUMNS}
    sources = words.price_sources(budgets)
    about = escape(comparison.explained(head)) + (escape(f" Prices: on demand, {sources}.") if sources else "")
    return [markdown_table(head, [[escape(cell) for cell in row] for row in rows], right=right), about]


def _remedies(budgets: Sequence[MemoryBudget]) -> list[str]:
    found = comparison.remedies(budgets)
    if not found:
        return []
    rows = [[escape(name), escape(change)] for name, change in found]
    return ["## Cheapest change that mends it", markdown_table(("budget", "change"), rows, right=set())]


def _notes(warnings: Sequence[str]) -> list[str]:
    return ["\n".join(f"- Note: {escape(warning)}" for warning in warnings)] if warnings else []


def _titled(title: str, body: str) -> list[str]:
    return [title, body] if body else []


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in rows)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int]) -> str:
    """A table whose columns in `right` are set to the right; cells must be escaped already."""
    rule = ["---:" if number in right else "---" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
