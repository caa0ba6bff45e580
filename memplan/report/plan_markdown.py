"""A plan as GitHub-flavoured Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memplan.domain.plan import PlanAnswer
from memplan.report import plan_words as words
from memplan.report.markdown import code, escape
from memplan.report.words import model_title

_MOST_REJECTIONS = 20


def markdown_plan(answer: PlanAnswer) -> str:
    """Return the winner, the front, what binds, and what was ruled out."""
    parts = [
        f"# {escape(model_title(answer.model_name, answer.parameters))}",
        f"{escape(words.title(answer))}; goal: {answer.request.goal}.",
        *(_winner(answer) if answer.winner else _none(answer)),
        f"## Ruled out of {answer.considered:,} candidates",
        _table(("candidates", "region", "by", "because"), words.rejections(answer, _MOST_REJECTIONS)),
        f"{words.beaten(answer.rejections):,} more are beaten on every axis; budgets computed: {answer.estimated:,}.",
        *(f"> Note: {escape(note)}" for note in words.notes(answer)),
    ]
    return "\n\n".join(parts) + "\n"


def _winner(answer: PlanAnswer) -> list[str]:
    plan = answer.winner
    assert plan is not None
    lines = [f"- {escape(name)}: {escape(value)}" for name, value in words.promises(plan)]
    parts = [
        f"**Winner: {escape(words.sentence(plan))}.** It is {escape(', '.join(plan.reasons))}.",
        "\n".join(lines),
    ]
    if answer.runner_up is not None:
        against = escape(", ".join(answer.runner_up_loses_by))
        parts.append(f"Runner-up: {escape(words.sentence(answer.runner_up))}. Against the winner: {against}.")
    parts += [
        f"## The {len(answer.front)} plans that no other beats on every axis",
        _table(words.COLUMNS, [words.row(each) for each in answer.front]),
        escape(words.LEGEND),
    ]
    return parts


def _none(answer: PlanAnswer) -> list[str]:
    binding = ", ".join(code(words.LIMITS[limit]) for limit in answer.binding)
    near = [f"- with {code(each.change)}: {escape(words.sentence(each.plan))}" for each in answer.nearest]
    parts = [f"**No plan keeps every limit.** What binds: {binding}."]
    return [*parts, "The nearest:\n\n" + "\n".join(near)] if near else parts


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    drawn = [list(head), ["---"] * len(head), *([escape(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in drawn)
