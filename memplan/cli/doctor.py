"""`memplan doctor`: why a run went out of memory, from whatever it left behind.

The exit code says whether an answer was found, not whether it is a good one: 0 for a diagnosis, also of a crash.
"""

from __future__ import annotations

from memplan.cli.options import OUTPUT_OPTIONS, REPORT_OPTIONS, Given, Option, accepts
from memplan.cli.output import answer_with, check_output
from memplan.domain.diagnosis import DoctorReport
from memplan.errors import UsageError

SOURCE = Option(
    name="source",
    help="A log, a traceback, a config, a snapshot, nvidia-smi's output, a server's address, or - for stdin.",
    is_workload=False,
)
DOCTOR_OPTIONS = (
    Option(name="model", help="The model, where the text does not name it.", is_workload=False),
    Option(name="gpu", help="The GPU, where the text does not tell its size.", is_workload=False),
    Option(name="gpu_memory", help="What CUDA sees in all, such as 79.2GiB.", is_workload=False),
    Option(name="engine", help="Engine and version, where the text does not say.", is_workload=False),
    Option(
        name="learn", kind=bool, flags=("--learn",), help="Let estimate learn what was measured.", is_workload=False
    ),
    Option(
        name="seconds", kind=float, help="A server is looked at twice, so far apart (default 2).", is_workload=False
    ),
    Option(name="offline", kind=bool, flags=("--offline",), help="Never ask the hub.", is_workload=False),
)
_FORMATS = ("json", "markdown", "html", "quiet")
_REPORTS = tuple(option for option in REPORT_OPTIONS if option.name != "fail_on")


@accepts(*DOCTOR_OPTIONS, *OUTPUT_OPTIONS, *_REPORTS, argument=SOURCE)
def doctor_command(given: Given) -> None:
    """Why a run went out of memory, or will: what happened, why, and the change that mends it."""
    if sum(bool(given.get(name)) for name in _FORMATS) > 1:
        raise UsageError("--json, --markdown, --html and --quiet exclude each other", hint="give one of them")
    if "source" not in given:
        raise UsageError("nothing to look at", hint="memplan doctor FILE, a server's address, or - to read from stdin")
    check_output(given)
    from memplan.cli.doctor_sources import report_on
    from memplan.cli.serving_options import parse_devices
    from memplan.report.diagnosis_words import lines

    # A GPU that is asked for must be one, also where what is read needs none.
    parse_devices(given.get("gpu"), memory=given.get("gpu_memory"), free=None)
    report = report_on(given)
    if not report.diagnoses and report.recognised.kind == "unknown":
        raise UsageError(
            f"nothing is known of what was given: {lines(report.recognised.num_lines)} without a word of memory",
            hint="give the lines in which it failed, a config, a snapshot, nvidia-smi's output or a server's address",
        )
    answer_with(given, _render(given, report))


def _render(given: Given, report: DoctorReport) -> str:
    if given.get("json"):
        from memplan.report.diagnosis_json import diagnosis_json

        return diagnosis_json(report)
    if given.get("markdown"):
        from memplan.report.diagnosis_markdown import markdown_diagnosis

        return markdown_diagnosis(report)
    if given.get("html"):
        from memplan.report.diagnosis_html import html_diagnosis

        return html_diagnosis(report)
    from memplan.cli.listing import page_style
    from memplan.report.diagnosis_text import render_diagnosis, render_sentence

    style, _ = page_style(no_color=given.get("no_color", False))
    return render_sentence(report, style) if given.get("quiet") else render_diagnosis(report, style)
