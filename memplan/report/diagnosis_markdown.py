"""A diagnosis as Markdown, for an issue or a ticket."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.diagnosis import Diagnosis, DoctorReport
from memplan.report.diagnosis_words import SEVERITY, about, difference, effect, figure, given
from memplan.report.layout import printable


def markdown_diagnosis(report: DoctorReport) -> str:
    """Return the report as Markdown."""
    parts = [f"Read as {_cell(given(report))}."]
    if report.main is None:
        parts.append("Nothing was found that is the matter.")
    for number, each in enumerate(report.diagnoses):
        parts += _one(each, report.budget_of if number == 0 else "")
    if report.needs:
        parts.append("To tell more:\n\n" + "\n".join(f"- {_cell(need)}" for need in report.needs))
    parts += [f"Note: {_cell(note)}" for note in report.notes]
    return "\n\n".join(parts) + "\n"


def _one(each: Diagnosis, budget_of: str) -> list[str]:
    word = SEVERITY[each.severity] + ("" if each.is_certain else " (likely)")
    parts = [f"## {word}: {each.cause}", _cell(each.sentence) + (f" ({_cell(each.because)})" if each.because else "")]
    parts += [f"> {_cell(one.where)}: `{_code(str(one.value))}`" for one in each.evidence if one.term == "said"]
    if each.why:
        title = f"Budget of {_cell(budget_of)} beside what was measured:" if budget_of else "What was measured:"
        rows = [
            (line.term, figure(line.budget, line.unit), figure(line.measured, line.unit), difference(line), line.note)
            for line in each.why
        ]
        parts += [title, _table(("Term", "Budget", "Measured", "Off by", ""), rows)]
    else:
        shown = [(one.term, figure(one.value, one.unit), one.where) for one in each.evidence if one.term != "said"]
        parts += [_table(("", "", ""), shown)] if shown else []
    if each.mends:
        changes = [(f"`{_code(mend.change)}`", effect(mend), about(mend)) for mend in each.mends]
        parts.append(_table(("Mend", "Brings", ""), changes, code_first=True))
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, code_first: bool = False) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [cell if code_first and not column else _cell(cell) for column, cell in enumerate(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that Markdown takes literally, on one line."""
    plain = printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return "".join(f"\\{char}" if char in "*_`[]#" else char for char in plain)


def _code(text: str) -> str:
    return printable(text).replace("`", "'").replace("|", "\\|")
