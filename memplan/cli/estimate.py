"""`memplan estimate`: parse, call the pipeline, render, exit 0 when it fits and 1 when it does not."""

from collections.abc import Collection, Sequence

from memplan.cli.options import (
    DEVICE_OPTIONS,
    LLAMA_CPP_OPTIONS,
    OUTPUT_OPTIONS,
    REPORT_OPTIONS,
    SERVING_OPTIONS,
    SOURCE_OPTIONS,
    TRAINING,
    TRAINING_OPTIONS,
    Given,
    accepts,
)
from memplan.cli.output import answer_with, check_output
from memplan.domain.budget import MemoryBudget
from memplan.domain.holders import Holders
from memplan.errors import UsageError

_FAIL_ON = ("does_not_fit", "tight", "never")
_FORMATS = ("json", "markdown", "html", "quiet")


@accepts(
    *DEVICE_OPTIONS,
    *SERVING_OPTIONS,
    *LLAMA_CPP_OPTIONS,
    *SOURCE_OPTIONS,
    *OUTPUT_OPTIONS,
    *REPORT_OPTIONS,
    *TRAINING_OPTIONS,
)
def estimate_command(given: Given) -> None:
    """What a model uses on a GPU, line by line; what fits, and what would make it fit."""
    fail_on = given.get("fail_on", "does_not_fit").replace("-", "_")
    if fail_on not in _FAIL_ON:
        raise UsageError(f"not a verdict to fail on: `{fail_on}`", hint=f"use one of {', '.join(_FAIL_ON)}")
    if sum(bool(given.get(name)) for name in _FORMATS) > 1:
        raise UsageError("--json, --markdown, --html and --quiet exclude each other", hint="give one of them")
    check_output(given)
    from memplan.cli.state import filled_in, remember

    here, given = given, given if "config" in given else filled_in(given)
    if TRAINING & given.keys():
        from memplan.cli.estimate_training import answer_training_command

        _finish(answer_training_command(given, here), fail_on)
        return
    from memplan.cli.questions import ask
    from memplan.pipeline import answer

    asked = ask(given)
    if not asked.devices:
        answer_with(given, _render_holders(given, asked.holders()))
        remember(asked.given)
        return
    budgets = [answer(question) for question in asked.questions()]
    answer_with(given, _render(given, budgets))
    remember(asked.given)
    _finish({budget.verdict for budget in budgets}, fail_on)


def _finish(verdicts: Collection[str], fail_on: str) -> None:
    if fail_on != "never" and ("does_not_fit" in verdicts or ("tight" in verdicts and fail_on == "tight")):
        raise SystemExit(1)


def _render(given: Given, budgets: Sequence[MemoryBudget]) -> str:
    if given.get("json"):
        from memplan.report.json_report import estimate_json

        return estimate_json(budgets)
    if given.get("markdown"):
        from memplan.report.markdown import markdown_report

        return markdown_report(budgets)
    if given.get("html"):
        from memplan.report.html import html_report

        return html_report(budgets)
    from memplan.cli.listing import page_style

    style, _ = page_style(no_color=given.get("no_color", False))
    if len(budgets) > 1 and not given.get("quiet"):
        from memplan.report.side_by_side import render_side_by_side

        return render_side_by_side(budgets, style)
    from memplan.report.text import render_budget, render_verdict

    if given.get("quiet"):
        return "".join(render_verdict(budget, style, named=len(budgets) > 1) for budget in budgets)
    return render_budget(budgets[0], style)


def _render_holders(given: Given, holders: Holders) -> str:
    if given.get("json"):
        from memplan.report.json_report import holders_json

        return holders_json(holders)
    if given.get("markdown"):
        from memplan.report.markdown import markdown_holders

        return markdown_holders(holders)
    if given.get("html"):
        from memplan.report.html import html_holders

        return html_holders(holders)
    from memplan.cli.listing import page_style
    from memplan.report.side_by_side import render_holders

    return render_holders(holders, page_style(no_color=given.get("no_color", False))[0])
