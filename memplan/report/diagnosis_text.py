"""A diagnosis as a page of text: what happened, why, and what mends it."""

from __future__ import annotations

from memplan.domain.diagnosis import Diagnosis, DoctorReport
from memplan.report.diagnosis_words import SEVERITY, about, difference, effect, figure, given
from memplan.report.layout import Style, paragraph, table

_COLORS = {"error": "31", "warning": "33", "note": "36", "fine": "32"}


def render_diagnosis(report: DoctorReport, style: Style) -> str:
    """Return the whole page."""
    parts = [paragraph(f"read as {given(report)}", style, indent="", hang="  ", code="2")]
    if report.main is None:
        parts.append(paragraph("nothing was found that is the matter", style, indent="", hang="  "))
    for number, each in enumerate(report.diagnoses):
        parts += _one(each, style, budget_of=report.budget_of if number == 0 else "")
    if report.needs:
        parts += ["", "To tell more", *(paragraph(f"- {need}", style, hang="    ") for need in report.needs)]
    parts += (
        ["", *(paragraph(f"note: {note}", style, indent="", hang="  ") for note in report.notes)]
        if report.notes
        else []
    )
    return "\n".join(parts) + "\n"


def render_sentence(report: DoctorReport, style: Style) -> str:
    """Return the main diagnosis alone, in one line."""
    if report.main is None:
        return "unknown\n"
    each = report.main
    return f"{style.paint(each.cause, _COLORS[each.severity])}: {each.sentence}\n"


def _one(each: Diagnosis, style: Style, *, budget_of: str) -> list[str]:
    word = SEVERITY[each.severity] + ("" if each.is_certain else "?")
    parts = ["", paragraph(f"{word}  {each.cause}", style, indent="", hang="  ", code=f"1;{_COLORS[each.severity]}")]
    parts.append(paragraph(each.sentence, style))
    if each.because:
        parts.append(paragraph(f"({each.because})", style))
    for one in each.evidence:
        if one.term == "said":
            parts.append(paragraph(f"{one.where}: {one.value}", style, hang="    ", code="2"))
    parts += _why(each, style, budget_of) + _figures(each, style) + _mends(each, style)
    return parts


def _why(each: Diagnosis, style: Style, budget_of: str) -> list[str]:
    if not each.why:
        return []
    has_budget = any(line.budget is not None for line in each.why)
    title = f"Why: the budget of {budget_of} beside what was measured" if has_budget else "Why: what was measured"
    rows = [
        (line.term, figure(line.budget, line.unit), figure(line.measured, line.unit), difference(line), line.note)
        for line in each.why
    ]
    if not any(line.measured is not None for line in each.why):
        shown = [(term, budget, note) for term, budget, _, _, note in rows]
        return ["", f"The budget of {budget_of}", table(shown, style, right=frozenset({1}), indent="  ")]
    if not has_budget:
        shown = [(term, measured, note) for term, _, measured, _, note in rows]
        return ["", title, table(shown, style, right=frozenset({1}), indent="  ")]
    head = ("", "budget", "measured", "off by", "")
    return ["", title, table([head, *rows], style, right=frozenset({1, 2, 3}), indent="  ")]


def _figures(each: Diagnosis, style: Style) -> list[str]:
    """Figures that no table of terms has: of servers, of nvidia-smi, of configs."""
    known = {"said", *(line.term for line in each.why)}
    shown = [
        (one.term, figure(one.value, one.unit), one.where)
        for one in each.evidence
        if one.term not in known and (one.where or not each.why)
    ]
    if not shown:
        return []
    return ["", table(shown, style, right=frozenset({1}), indent="  ")]


def _mends(each: Diagnosis, style: Style) -> list[str]:
    if not each.mends:
        return []
    rows = [(f"{number}. {mend.change}", effect(mend), about(mend)) for number, mend in enumerate(each.mends, start=1)]
    return ["", "Mends", table(rows, style, right=frozenset({1}), indent="  ", narrowest_first=34)]
