"""Training budgets as Markdown: a page for an issue, a pull request or a wiki."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.training_budget import TrainingBudget
from memplan.report import training_words as words
from memplan.report.markdown import code, escape, joined, markdown_table
from memplan.report.words import VERDICTS, setting


def markdown_training(budgets: Sequence[TrainingBudget], left_out: Sequence[str] | None = None) -> str:
    """Return one budget as a page, or several as a table and, where GPUs were named, a section each."""
    if left_out is None and len(budgets) == 1:
        return joined(_budget(budgets[0], f"# {escape(words.title(budgets[0]))}"))
    parts = []
    if budgets:
        head, rows = words.table_rows(budgets)
        parts += [f"# {escape(words.title(budgets[0]))}", _table(head, rows, {1, 4, 5, 6})]
    if left_out:
        parts.append(f"Do not hold it: {escape(', '.join(left_out))}.")
    if left_out is None:
        for each in budgets:
            parts += _budget(each, f"## {escape(words.gpus(each))}")
    return joined(parts)


def _budget(budget: TrainingBudget, heading: str) -> list[str]:
    depth = "#" * (heading.index(" ") + 1)
    head, rows = words.phase_rows(budget)
    return [
        heading,
        escape(words.where(budget)),
        _verdict(budget),
        f"{depth} At the peak, on {escape(words.each_gpu(budget))}",
        _lines(budget),
        f"{depth} Phases",
        _table(head, rows, set(range(1, len(head)))),
        *[f"- {escape(words.PHASE_NAMES[each.name])}: {escape(each.note)}" for each in budget.phases if each.note],
        f"{depth} What you will see",
        _list([*words.memory_rows(budget), *words.limits(budget)]),
        *_remedies(budget, depth),
        f"{depth} Settings",
        markdown_table(
            ("setting", "value"),
            [[code(name), escape(setting(value))] for name, value in budget.settings.items()],
            right=set(),
        ),
        _table(["how it works", "value", "source"], [list(each) for each in budget.facts], set())
        if budget.facts
        else "",
        "\n".join(f"- Note: {escape(warning)}" for warning in budget.warnings),
    ]


def _verdict(budget: TrainingBudget) -> str:
    reasons = "\n".join(f"- {escape(reason)}" for reason in words.reasons(budget))
    parts = [
        f"**{VERDICTS[budget.verdict]}**: {escape(words.sentence(budget))}",
        reasons,
        escape(words.mending(budget)),
    ]
    return "\n\n".join(part for part in parts if part)


def _lines(budget: TrainingBudget) -> str:
    rows = []
    for row in words.line_rows(budget):
        name, size = escape(row.name), row.size
        if row.kind == "sum":
            name, size = f"**{name}**", f"**{size}**"
        rows.append([name, size, *(escape(text) for text in (row.interval, row.known, row.working, row.source))])
    return markdown_table(("line", "size", "90 % interval", "how known", "working", "source"), rows, right={1, 2})


def _remedies(budget: TrainingBudget, depth: str) -> list[str]:
    if not budget.remedies:
        return []
    rows = []
    for remedy, (name, size, fits, time, note) in words.remedy_rows(budget):
        shown = f"**{code(name)}**" if remedy is budget.cheapest else code(name)
        rows.append([shown, size, fits, escape(time), escape(note)])
    head = ("change", "returns on each GPU", "fits then", "time", "note")
    return [f"{depth} Changes, by what they cost", markdown_table(head, rows, right={1})]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: set[int]) -> str:
    return markdown_table(
        [escape(each) for each in head], [[escape(cell) for cell in row] for row in rows], right=right
    )


def _list(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in pairs)
