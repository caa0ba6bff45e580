"""Kernels side by side in peak and traffic, first runs beside later ones, and what a graph holds, in every format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import made_timelines
import pytest
from parsed_page import Page

from memplan.domain.timeline import Capture, CaptureBreak, MemoryTimeline, Work
from memplan.report.layout import Style
from memplan.report.profile_html import html_profiles
from memplan.report.profile_json import profile_object, profiles_json
from memplan.report.profile_markdown import markdown_profiles
from memplan.report.profile_reading import timeline_of
from memplan.report.profile_runs import capture_sentence, run_rows
from memplan.report.profile_text import render_profile, render_side_by_side
from memplan.report.profile_traffic import short_labels, side_by_side, traffic_tables
from memplan.units import GIB, MIB

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
KERNELS = {"math": 8, "efficient": 3, "flash": 2}
BREAK = CaptureBreak(
    obstacle="host-read", operator="aten._local_scalar_dense", module="model.mlp", where="moe.py:7 route", count=32
)
CAPTURED = Capture(pool_bytes=22 * MIB, live_bytes=8 * MIB)
BROKEN = Capture(breaks=(BREAK,))


def with_kernel(name: str, moved_gib: int) -> MemoryTimeline:
    timeline = made_timelines.serving()
    attention = {"model.layers.*.self_attn": Work(flops=10**12, moved_bytes=(moved_gib - 1) * GIB)}
    phases = tuple(
        replace(phase, work=Work(flops=10**13, moved_bytes=moved_gib * GIB), work_by_module=attention)
        if phase.phase == "prefill"
        else replace(phase, work=None)
        for phase in timeline.phases
    )
    return replace(timeline, phases=phases, settings={**timeline.settings, "attention": name})


KERNEL_PROFILES = [with_kernel(name, moved) for name, moved in KERNELS.items()]


def ran_twice(execution: str) -> MemoryTimeline:
    timeline = made_timelines.serving()
    first = next(phase for phase in timeline.phases if phase.phase == "decode")
    later = replace(first, iteration=1, peak=replace(first.peak, allocated_bytes=first.peak.allocated_bytes - GIB))
    phases = (timeline.phases[0], first, later)
    return replace(timeline, phases=phases, settings={**timeline.settings, "execution": execution})


def test_kernels_are_told_apart_by_what_they_do_not_share() -> None:
    assert short_labels(KERNEL_PROFILES) == ["attention math", "attention efficient", "attention flash"]
    assert short_labels([KERNEL_PROFILES[0]] * 2) == ["profile 1", "profile 2"]
    assert short_labels([ran_twice("eager"), ran_twice("compiled")]) == ["eager", "compiled"]


def test_each_kernel_has_its_peak_its_flops_its_bytes_and_their_ratio() -> None:
    ((head, rows),) = traffic_tables(KERNEL_PROFILES)
    assert head == ["prefill", "peak", "computes", "moves", "of it attention", "FLOPs a byte", "takes"]
    assert [row[3] for row in rows] == ["8.00 GiB", "3.00 GiB", "2.00 GiB"]
    assert [row[4] for row in rows] == ["7.00 GiB", "2.00 GiB", "1.00 GiB"]
    assert [row[5] for row in rows] == [f"{10**13 / (moved * GIB):,.1f}" for moved in KERNELS.values()]


def test_all_formats_have_kernels_side_by_side() -> None:
    text = render_side_by_side(KERNEL_PROFILES, Style(width=100))
    page = Page(html_profiles(KERNEL_PROFILES))
    markdown = markdown_profiles(KERNEL_PROFILES)
    assert "peak and traffic, one pass of each phase" in text
    assert page.counts["caption"] == page.counts["table"]
    for said in (text, html_profiles(KERNEL_PROFILES), markdown):
        assert "of it attention" in said
        assert all(f"attention {name}" in said for name in KERNELS)
    content = json.loads(profiles_json(KERNEL_PROFILES))
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / "memplan.profiles.json").read_text())).validate(content)
    assert [each["profile"] for each in content["side_by_side"]] == [f"attention {name}" for name in KERNELS]
    assert [each["attention_moved_bytes"] for each in content["side_by_side"]] == [7 * GIB, 2 * GIB, GIB]
    assert content["side_by_side"][0]["flops_per_byte"] == pytest.approx(10**13 / (8 * GIB))


def test_profiles_whose_work_was_not_counted_have_no_such_table() -> None:
    assert side_by_side([made_timelines.bare()]) == []
    assert "peak and traffic" not in render_side_by_side([made_timelines.bare()] * 2, Style(width=100))


def test_the_first_run_is_beside_those_after_it_unless_the_code_is_run_as_it_is() -> None:
    (row,) = run_rows(ran_twice("compiled"))
    assert row[0] == "decode"
    assert row[1] != row[2]
    assert run_rows(ran_twice("eager")) == []
    for execution, shown in (("compiled", True), ("graph", True), ("eager", False)):
        timeline = ran_twice(execution)
        assert ("those after it" in render_profile(timeline, Style(width=100))) is shown
        assert ("first peak" in html_profiles([timeline])) is shown
        assert ("first peak" in markdown_profiles([timeline])) is shown


@pytest.mark.parametrize("capture", [CAPTURED, BROKEN, Capture()])
def test_a_capture_is_told_in_every_format_and_read_back(capture: Capture) -> None:
    timeline = replace(made_timelines.serving(), capture=capture)
    content = json.loads(json.dumps(profile_object(timeline)))
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / "memplan.profile.json").read_text())).validate(content)
    assert timeline_of(content, "a.json") == timeline
    words = capture_sentence(capture)[3:]
    for said in (render_profile(timeline, Style(width=400)), html_profiles([timeline]), markdown_profiles([timeline])):
        assert words in said
        assert ("moe.py:7 route" in said) is bool(capture.breaks)


def test_a_profile_from_before_captures_were_told_is_read() -> None:
    content = json.loads(json.dumps(profile_object(made_timelines.serving())))
    del content["capture"]
    assert timeline_of(content, "a.json").capture is None
