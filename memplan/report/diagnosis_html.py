"""A diagnosis as one self-contained page."""

from __future__ import annotations

from memplan.domain.diagnosis import Diagnosis, DoctorReport
from memplan.report.diagnosis_words import SEVERITY, about, difference, effect, figure, given
from memplan.report.html_parts import data_table, escape, notes, page, pairs, table_row, titled

_KIND = {"error": "does_not_fit", "warning": "tight", "note": "tight", "fine": "fits"}
_ABOUT = (
    "1 GiB is 2^30 bytes. Budget: what memplan's formulas give for the settings that were read. Measured: what "
    "the log, the "
    "traceback or the server said. A change that is enough mends it alone."
)


def html_diagnosis(report: DoctorReport) -> str:
    """Return the page."""
    body = ["<h1>Diagnosis</h1>", f'<p class="sub">Read as {escape(given(report))}.</p>']
    if report.main is None:
        body.append('<div class="verdict"><p>Nothing was found that is the matter.</p></div>')
    for number, each in enumerate(report.diagnoses):
        body += _one(each, report.budget_of if number == 0 else "")
    if report.needs:
        items = "".join(f"<li>{escape(need)}</li>" for need in report.needs)
        body.append(titled("To tell more", f"<ul>{items}</ul>"))
    if report.settings:
        rows = [(name, str(value)) for name, value in report.settings.items()]
        body.append(titled("Settings that were read", pairs(rows)))
    body += notes(report.notes)
    return page("memplan: diagnosis", body, about=_ABOUT)


def _one(each: Diagnosis, budget_of: str) -> list[str]:
    likely = "" if each.is_certain else " (likely)"
    because = f'<p class="sub">{escape(each.because)}.</p>' if each.because else ""
    parts = [
        f'<div class="verdict {_KIND[each.severity]}"><p><span class="word">{SEVERITY[each.severity]}{likely}</span> '
        f"<code>{escape(each.cause)}</code></p><p>{escape(each.sentence)}.</p>{because}{_said(each)}</div>"
    ]
    if each.why:
        rows = [
            table_row(
                (
                    f"{line.term}, {line.note}" if line.note else line.term,
                    figure(line.budget, line.unit),
                    figure(line.measured, line.unit),
                    difference(line),
                ),
                right=(1, 2, 3),
            )
            for line in each.why
        ]
        caption = f"The budget of {budget_of} beside what was measured" if budget_of else "What was measured"
        head = ("Term", "Budget", "Measured", "Off by")
        parts.append(titled("Why", data_table(caption, head, rows, right=(1, 2, 3))))
    else:
        shown = [(one.term, figure(one.value, one.unit), one.where) for one in each.evidence if one.term != "said"]
        if shown:
            figures = [table_row(row, right=(1,)) for row in shown]
            parts.append(data_table("What was read", ("Figure", "", "Where"), figures, right=(1,)))
    if each.mends:
        changes = [table_row((mend.change, effect(mend), about(mend)), right=()) for mend in each.mends]
        parts.append(
            titled(
                "Mends",
                data_table("Changes, the best first", ("Change", "Brings", "Risk and basis"), changes, right=()),
            )
        )
    return parts


def _said(each: Diagnosis) -> str:
    return "".join(
        f'<p class="sub">{escape(one.where)}: <code>{escape(str(one.value))}</code></p>'
        for one in each.evidence
        if one.term == "said"
    )
