"""A plan of training as a page for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.training_plan import TrainingPlanAnswer
from memplan.report import training_plan_words as words
from memplan.report.layout import Cell, Style, paragraph, table

_BOLD, _DIM = "1", "2"
_HINT = "memplan emit-config writes it; memplan estimate shows it line by line"
_NO_PLAN = "more GPUs, --train lora or qlora, or shorter sequences"
_MOST_REJECTIONS = 8


def render_training_plan(answer: TrainingPlanAnswer, style: Style) -> str:
    """Return the whole page."""
    sections = [
        f"{paragraph(words.title(answer), style, indent='', code=_BOLD)}\n{paragraph(words.as_asked(answer), style)}",
        _changes(answer, style),
        _winner(answer, style),
        _alternatives(answer, style),
        _rejections(answer, style),
        "\n".join(paragraph(note, style, indent="note: ", hang="      ") for note in answer.notes),
        paragraph(_HINT if answer.winner else _NO_PLAN, style, indent="hint: ", hang="      "),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def render_training_winner(answer: TrainingPlanAnswer, style: Style) -> str:
    """Return the answer in one line."""
    word = style.paint("PLAN", "32") if answer.winner else style.paint("NO PLAN", "31")
    return f"{word}: {words.sentence(answer)}\n"


def markdown_training_plan(answer: TrainingPlanAnswer) -> str:
    """Return the page as Markdown."""
    lines = [f"# {words.title(answer)}", "", f"{words.as_asked(answer)}.", ""]
    if answer.changes:
        lines += _markdown_table(words.CHANGE_HEAD, words.change_rows(answer))
        lines += ["", f"The smallest that fits: `{answer.smallest}`." if answer.smallest else "None of these fits.", ""]
    lines += [f"**{words.sentence(answer)}.**", ""]
    if answer.winner is not None:
        lines += [f"{words.time_parts(answer.winner)}; {words.limits(answer)}.", ""]
        lines += [*_markdown_table(words.HEAD, [words.row(each) for each in answer.alternatives]), ""]
    lines += [f"- ruled out: {each.region}: {each.reason} ({each.candidates})" for each in answer.rejections]
    return "\n".join([*lines, *(f"- {note}" for note in answer.notes)]).rstrip() + "\n"


def _changes(answer: TrainingPlanAnswer, style: Style) -> str:
    if not answer.changes:
        return ""
    rows = [*words.change_rows(answer)]
    below = f"the smallest that fits: {answer.smallest}" if answer.smallest else "none of these fits"
    return f"what makes it smaller, each by itself\n{_table(words.CHANGE_HEAD, rows, style)}\n{paragraph(below, style)}"


def _winner(answer: TrainingPlanAnswer, style: Style) -> str:
    line = render_training_winner(answer, style).rstrip("\n")
    first = paragraph(words.sentence(answer), style, indent="  ")
    if answer.winner is None:
        return line
    word = style.paint("PLAN", "32")
    below = [words.time_parts(answer.winner), words.limits(answer)]
    return "\n".join([word, first, *(paragraph(text, style) for text in below if text)])


def _alternatives(answer: TrainingPlanAnswer, style: Style) -> str:
    if not answer.alternatives:
        return ""
    rows = [words.row(each) for each in answer.alternatives]
    return f"the best of each kind; times are estimates\n{_table(words.HEAD, rows, style)}"


def _rejections(answer: TrainingPlanAnswer, style: Style) -> str:
    shown = answer.rejections[:_MOST_REJECTIONS]
    if not shown:
        return ""
    lines = [paragraph(f"{each.region}: {each.reason}", style, indent="  - ", hang="    ") for each in shown]
    left = len(answer.rejections) - len(shown)
    lines += [f"  - and {left} more"] if left else []
    return "\n".join([f"ruled out, of {answer.considered} that were computed", *lines])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], style: Style) -> str:
    cells: list[list[Cell]] = [[(name, _DIM) for name in head], *(list[Cell](row) for row in rows)]
    return table(cells, style, right=frozenset({2, 3, 4, 5} if head is words.HEAD else {1}))


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join('---' for _ in head)}|"]
    return [*lines, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)]
