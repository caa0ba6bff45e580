"""Training budgets as one self-contained HTML page, in the manner of every other page of memplan."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.training_budget import TrainingBudget
from memplan.report import training_words as words
from memplan.report.html_parts import data_table, escape, notes, page, pairs, table_row, titled
from memplan.report.words import VERDICTS, setting


def html_training(budgets: Sequence[TrainingBudget], left_out: Sequence[str] | None = None) -> str:
    """Return a page of one budget, or of several with a table of them all first."""
    title = words.title(budgets[0]) if budgets else "No GPU holds it"
    body = [f"<h1>{escape(title)}</h1>"]
    if left_out is not None or len(budgets) > 1:
        head, rows = words.table_rows(budgets)
        right = (1, 4, 5, 6)
        body.append(data_table("GPUs side by side", head, [table_row(row, right=right) for row in rows], right))
    if left_out:
        body.append(f'<p class="note">Do not hold it: {escape(", ".join(left_out))}.</p>')
    if left_out is None:
        for each in budgets:
            heading = f"<h2>{escape(words.gpus(each))}</h2>" if len(budgets) > 1 else ""
            body.append(f"{heading}{_budget(each)}")
    return page(title, body)


def _budget(budget: TrainingBudget) -> str:
    head, rows = words.phase_rows(budget)
    columns = range(1, len(head))
    parts = [
        f'<p class="sub">{escape(words.where(budget))}</p>',
        _verdict(budget),
        titled(f"At the peak, on {words.each_gpu(budget)}", _lines(budget)),
        titled("Phases", data_table("Phases", head, [table_row(row, right=columns) for row in rows], columns)),
        titled("What you will see", pairs([*words.memory_rows(budget), *words.limits(budget)])),
        titled("Changes, by what they cost", _remedies(budget)),
        titled("Settings", pairs([(name, setting(value)) for name, value in budget.settings.items()])),
        titled(
            f"How {budget.trainer} works",
            pairs([(name, f"{value} ({origin})") for name, value, origin in budget.facts]),
        ),
        *notes(budget.warnings),
    ]
    return "\n".join(part for part in parts if part)


def _verdict(budget: TrainingBudget) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in words.reasons(budget))
    mending = words.mending(budget)
    return (
        f'<div class="verdict {budget.verdict}"><p><span class="word">{VERDICTS[budget.verdict]}</span>: '
        f"{escape(words.sentence(budget))}</p>{f'<ul>{reasons}</ul>' if reasons else ''}"
        f"{f'<p>{escape(mending)}</p>' if mending else ''}</div>"
    )


def _lines(budget: TrainingBudget) -> str:
    head = ("line", "size", "90 % interval", "how known", "working", "source")
    rows = [
        table_row((row.name, row.size, row.interval, row.known, row.working, row.source), row.kind)
        for row in words.line_rows(budget)
    ]
    return data_table("Every line at the peak", head, rows)


def _remedies(budget: TrainingBudget) -> str:
    rows = [
        table_row(texts, "best" if remedy is budget.cheapest else "", right=(1,))
        for remedy, texts in words.remedy_rows(budget)
    ]
    return data_table("Changes", ("change", "returns", "fits then", "time", "note"), rows, (1,)) if rows else ""
