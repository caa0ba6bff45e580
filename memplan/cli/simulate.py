"""`memplan simulate`: a deployment's scheduler and cache under traffic, and the same traffic under other settings.

Exit 1 when limits were given and the setup as asked does not keep them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.cli.options import (
    DEVICE_OPTIONS,
    LLAMA_CPP_OPTIONS,
    OUTPUT_OPTIONS,
    REPORT_OPTIONS,
    SERVING_OPTIONS,
    SIMULATE_OPTIONS,
    SOURCE_OPTIONS,
    Given,
    Option,
    accepts,
)
from memplan.cli.output import answer_with, check_output
from memplan.errors import UsageError

if TYPE_CHECKING:
    from memplan.domain.simulated import SimulationAnswer

_USERS = Option(name="concurrency", help="Users of a closed loop, in place of --rate.", panel="Traffic")
_SERVING = tuple(option for option in SERVING_OPTIONS if option.name != _USERS.name)
_FORMATS = ("json", "markdown", "html", "quiet")
_REPORT = tuple(option for option in REPORT_OPTIONS if option.name != "fail_on")


@accepts(
    *DEVICE_OPTIONS,
    _USERS,
    *SIMULATE_OPTIONS,
    *_SERVING,
    *LLAMA_CPP_OPTIONS,
    *SOURCE_OPTIONS,
    *OUTPUT_OPTIONS,
    *_REPORT,
)
def simulate_command(given: Given) -> None:
    """How a deployment behaves under traffic: cache, queues, waits, waste; what-ifs side by side."""
    if sum(bool(given.get(name)) for name in _FORMATS) > 1:
        raise UsageError("--json, --markdown, --html and --quiet exclude each other", hint="give one of them")
    check_output(given)
    from memplan.cli.simulate_run import simulated

    answer = simulated(given)
    answer_with(given, _render(given, answer))
    if answer.setups[0].keeps is False:
        raise SystemExit(1)


def _render(given: Given, answer: SimulationAnswer) -> str:
    if given.get("json"):
        from memplan.report.simulation_json import simulation_json

        return simulation_json(answer)
    if given.get("markdown"):
        from memplan.report.simulation_markdown import markdown_simulation

        return markdown_simulation(answer)
    if given.get("html"):
        from memplan.report.simulation_html import html_simulation

        return html_simulation(answer)
    from memplan.cli.listing import page_style
    from memplan.report.simulation_text import render_simulation, render_summary

    style, _ = page_style(no_color=given.get("no_color", False))
    return render_summary(answer, style) if given.get("quiet") else render_simulation(answer, style)
