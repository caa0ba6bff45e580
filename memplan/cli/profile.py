"""`memplan profile`: run a model's own code, or read what a run left behind, and say where the memory goes.

A phase that runs out of memory is an answer: the page says what was wanted, and the exit code is 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.cli.options import (
    DEVICE_OPTIONS,
    OUTPUT_OPTIONS,
    PROFILE_OPTIONS,
    REPORT_OPTIONS,
    SERVING_OPTIONS,
    SOURCE_OPTIONS,
    Given,
    accepts,
)
from memplan.cli.output import answer_with, check_output
from memplan.domain.timeline import MemoryTimeline
from memplan.errors import UsageError

_FORMATS = ("json", "markdown", "html", "quiet")
_FAIL_ON = ("does_not_fit", "never")
_INSTEAD = ("compare", "snapshot")
_SERVING = tuple(option for option in SERVING_OPTIONS if option.name in ("context", "concurrency"))
_DEVICES = tuple(option for option in DEVICE_OPTIONS if option.name != "sharing")
_SOURCES = tuple(option for option in SOURCE_OPTIONS if option.name != "introspect")


@accepts(*PROFILE_OPTIONS, *_DEVICES, *_SERVING, *_SOURCES, *OUTPUT_OPTIONS, *REPORT_OPTIONS)
def profile_command(given: Given) -> None:
    """What memory a model really takes, phase by phase: measured on a GPU or the CPU, or simulated with neither."""
    if sum(bool(given.get(name)) for name in _FORMATS) > 1:
        raise UsageError("--json, --markdown, --html and --quiet exclude each other", hint="give one of them")
    if sum(name in given for name in (*_INSTEAD, "model")) > 1:
        raise UsageError("a MODEL, --compare and --snapshot exclude each other", hint="give one of them")
    fail_on = given.get("fail_on", "does-not-fit").replace("-", "_")
    if fail_on not in _FAIL_ON:
        raise UsageError(f"not an outcome to fail on: `{fail_on}`", hint=f"use one of {', '.join(_FAIL_ON)}")
    check_output(given)
    check_output({"output": given.get("memory_viz"), "force": given.get("force")})
    if "compare" in given:
        from memplan.cli.profile_files import read_profile

        before, after = (read_profile(path) for path in given["compare"])
        answer_with(given, _render_comparison(given, before, after))
        return
    if "snapshot" in given:
        from memplan.cli.profile_files import profile_snapshot

        timelines: Sequence[MemoryTimeline] = [profile_snapshot(given)]
        interrupted = False
    else:
        from memplan.cli.profile_run import run_profiles

        timelines, interrupted = run_profiles(given)
    answer_with(given, _render(given, timelines))
    if interrupted:
        raise KeyboardInterrupt
    if fail_on != "never" and any(timeline.out_of_memory for timeline in timelines):
        raise SystemExit(1)


def _render(given: Given, timelines: Sequence[MemoryTimeline]) -> str:
    if given.get("json"):
        from memplan.report.profile_json import profiles_json

        return profiles_json(timelines)
    if given.get("markdown"):
        from memplan.report.profile_markdown import markdown_profiles

        return markdown_profiles(timelines)
    if given.get("html"):
        from memplan.report.profile_html import html_profiles

        return html_profiles(timelines)
    from memplan.cli.listing import page_style
    from memplan.report.profile_text import render_peak, render_profile, render_side_by_side

    style, _ = page_style(no_color=given.get("no_color", False))
    if given.get("quiet"):
        return "".join(render_peak(timeline, style, named=len(timelines) > 1) for timeline in timelines)
    return render_profile(timelines[0], style) if len(timelines) == 1 else render_side_by_side(timelines, style)


def _render_comparison(given: Given, before: MemoryTimeline, after: MemoryTimeline) -> str:
    from memplan.report.profile_comparison import compare

    change = compare(before, after)
    if given.get("json"):
        from memplan.report.profile_comparison import comparison_json

        return comparison_json(change)
    if given.get("markdown"):
        from memplan.report.profile_markdown import markdown_comparison

        return markdown_comparison(change)
    if given.get("html"):
        from memplan.report.profile_html import html_comparison

        return html_comparison(change)
    from memplan.cli.listing import page_style
    from memplan.report.profile_text import render_change, render_comparison

    style, _ = page_style(no_color=given.get("no_color", False))
    return render_change(change, style) if given.get("quiet") else render_comparison(change, style)
