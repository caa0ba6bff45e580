"""A plan as a page of plain text: the winner, the front, what the runner-up loses by, what was ruled out."""

from __future__ import annotations

from memplan.domain.plan import PlanAnswer
from memplan.report import plan_words as words
from memplan.report.layout import Cell, Style, paragraph, table
from memplan.report.words import model_title

_BOLD, _DIM, _GOOD, _BAD = "1", "2", "1;32", "1;31"
_MOST_ROWS = 10
_MOST_REJECTIONS = 12


def render_winner(answer: PlanAnswer, style: Style) -> str:
    """One line: the winner, or that there is none."""
    if answer.winner is None:
        return style.paint("NO PLAN", _BAD) + f" for {words.title(answer)}\n"
    return words.sentence(answer.winner) + "\n"


def render_plan(answer: PlanAnswer, style: Style) -> str:
    """The whole page."""
    head = [
        style.paint(model_title(answer.model_name, answer.parameters), _BOLD),
        words.title(answer) + f"; goal: {answer.request.goal}",
    ]
    body = [_winner(answer, style), _front(answer, style)] if answer.winner else [_none(answer, style)]
    parts = ["\n".join(head), *body, _ruled_out(answer, style), _notes(answer, style)]
    if answer.winner:
        parts.append("hint: `memplan emit-config` writes the winner's config file, `memplan estimate` every byte of it")
    return "\n\n".join(part for part in parts if part) + "\n"


def _winner(answer: PlanAnswer, style: Style) -> str:
    plan = answer.winner
    assert plan is not None
    lines = [style.paint("WINNER", _GOOD) + ": " + words.sentence(plan)]
    lines += [paragraph(f"it is {reason}", style) for reason in plan.reasons]
    rows: list[list[Cell]] = [[name, value] for name, value in words.promises(plan)]
    lines.append(table(rows, style, right=frozenset(), indent="  ", narrowest_first=10))
    if answer.runner_up is not None:
        lines.append(style.paint("runner-up", _BOLD) + ": " + words.sentence(answer.runner_up))
        lines.append(paragraph("against the winner: " + ", ".join(answer.runner_up_loses_by), style))
    return "\n".join(lines)


def _front(answer: PlanAnswer, style: Style) -> str:
    if len(answer.front) < 2:
        return ""
    shown = answer.front[:_MOST_ROWS]
    rows: list[list[Cell]] = [[(name, _DIM) for name in words.COLUMNS]]
    rows += [list(words.row(plan)) for plan in shown]
    more = f"; {len(answer.front) - len(shown)} more with --json" if len(answer.front) > len(shown) else ""
    title = style.paint(
        f"the {len(answer.front)} plans that no other beats on every axis, in the order of the goal{more}", _BOLD
    )
    return f"{title}\n{table(rows, style, right=words.RIGHT, narrowest_first=10)}\n{paragraph(words.LEGEND, style)}"


def _none(answer: PlanAnswer, style: Style) -> str:
    lines = [style.paint("NO PLAN", _BAD) + " keeps every limit."]
    if answer.binding:
        lines.append("  what binds: " + ", ".join(words.LIMITS[limit] for limit in answer.binding))
    for near in answer.nearest:
        lines.append(paragraph(f"nearest, with {near.change}: {words.sentence(near.plan)}", style))
    return "\n".join(lines)


def _notes(answer: PlanAnswer, style: Style) -> str:
    return "\n".join(paragraph(f"note: {note}", style, indent="", hang="      ") for note in words.notes(answer))


def _ruled_out(answer: PlanAnswer, style: Style) -> str:
    chosen = words.rejections(answer, _MOST_REJECTIONS)
    beaten = words.beaten(answer.rejections)
    title = style.paint(
        f"{answer.considered:,} candidates: {answer.estimated:,} budgets computed, {beaten:,} beaten on every axis",
        _BOLD,
    )
    if not chosen:
        return title
    rows: list[list[Cell]] = [[(name, _DIM) for name in ("ruled out", "region", "by", "because")]]
    rows += [list(row) for row in chosen]
    return f"{title}\n{table(rows, style, right=frozenset({0}), narrowest_first=9)}"
