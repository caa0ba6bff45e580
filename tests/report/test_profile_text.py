"""A profile as text and Markdown, as a person last looked at it, and what its words say of odd runs."""

from __future__ import annotations

from dataclasses import replace

import made_timelines
import pytest
from snapshots import check_snapshot

from memplan.domain.timeline import Roof, Work
from memplan.report import module_tree
from memplan.report import profile_words as words
from memplan.report.layout import Style
from memplan.report.profile_comparison import compare, difference
from memplan.report.profile_markdown import markdown_comparison, markdown_profiles
from memplan.report.profile_text import (
    render_change,
    render_comparison,
    render_peak,
    render_profile,
    render_side_by_side,
)
from memplan.report.run_axis import RunAxis
from memplan.units import GIB, MIB

SERVING, FULL = made_timelines.serving(), made_timelines.out_of_memory()
TRAINING = made_timelines.training(iterations=3, grows_bytes=1 << 28)


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_is_as_it_was(width: int) -> None:
    check_snapshot(f"profile-{width}.txt", render_profile(SERVING, Style(width=width)))


def test_other_pages_are_as_they_were() -> None:
    check_snapshot("profile-ascii.txt", render_profile(TRAINING, Style(width=100, unicode=False)))
    check_snapshot("profile-out-of-memory.txt", render_profile(FULL, Style(width=100)))
    check_snapshot("profile-bare.txt", render_profile(made_timelines.bare(), Style(width=100)))
    check_snapshot("profile-several.txt", render_side_by_side([SERVING, FULL], Style(width=100)))
    check_snapshot("profile-compared.txt", render_comparison(compare(FULL, SERVING), Style(width=100)))
    check_snapshot("profile.md", markdown_profiles([SERVING]) + markdown_comparison(compare(FULL, SERVING)))


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_the_page(width: int) -> None:
    for timeline in (SERVING, FULL, TRAINING, made_timelines.bare(), made_timelines.hostile()):
        for line in render_profile(timeline, Style(width=width)).splitlines():
            assert len(line) <= width, line
            assert line == line.rstrip()
            assert line.isprintable()


def test_the_answer_is_one_line() -> None:
    assert render_peak(SERVING, Style()) == (
        "PEAK: 16.26 GiB allocated in prefill, 16.36 GiB reserved, 6.19 GiB left of 22.54 GiB.\n"
    )
    assert render_peak(FULL, Style()).startswith(
        "OUT OF MEMORY: prefill wants 0.49 GiB for bfloat16 [1, 2048, 128256] in lm_head, 100.0 MiB of 15.50 GiB are"
    )
    assert render_peak(SERVING, Style(), named=True).startswith("bfloat16, 1 x 2,048 + 4 tokens, attention flash: PEAK")


def test_runs_of_a_phase_are_one_row_from_before_the_first_to_after_the_last() -> None:
    rows = {row[0]: row[1:] for row in words.phase_rows(TRAINING)}
    assert set(rows) == {"load", "forward x 3", "backward x 3", "optimizer x 3"}
    assert rows["forward x 3"][0] == "2.00 GiB"
    assert rows["forward x 3"][5] == "-"
    assert (rows["optimizer x 3"][2], rows["optimizer x 3"][5]) == ("6.75 GiB", "0.75 GiB")


def test_weights_do_not_fill_the_list_of_the_largest() -> None:
    rows = words.largest_rows(SERVING.peak)
    assert rows[0][:3] == ["15.00 GiB", "all of them", "weights"]
    assert [row[2] for row in rows[1:]] == ["activations", "KV cache"]


def test_what_binds_a_phase_is_told_by_the_ridge_of_the_device() -> None:
    roof = Roof(flops_per_s=300e12, moved_bytes_per_s=2e12)
    assert words.bound(Work(flops=149, moved_bytes=1), roof) == "bandwidth"
    assert words.bound(Work(flops=151, moved_bytes=1), roof) == "compute"
    assert words.bound(Work(flops=151, moved_bytes=1), None) == ""
    assert words.at_best(Work(flops=3 * 10**12, moved_bytes=1), roof) == "> 10.00 ms"


def test_the_same_is_said_of_what_hardly_changed() -> None:
    assert difference(GIB, GIB + MIB // 2) == "the same"
    assert difference(GIB, 2 * GIB) == "+1.00 GiB"
    assert difference(GIB, 0) == "-1.00 GiB"
    assert render_change(compare(SERVING, SERVING), Style()).count("the same") == 2


def test_equal_layers_are_one_branch_of_the_tree() -> None:
    tree = module_tree.of_peak(SERVING)
    assert tree is not None
    assert tree.size_bytes == SERVING.peak.peak.allocated_bytes
    weights = tree.children[0]
    assert (weights.name, weights.children[0].name, weights.children[0].count) == ("weights", "model.layers.*", 32)
    rest = module_tree.without_weights(tree)
    assert rest is not None
    assert rest.size_bytes == tree.size_bytes - weights.size_bytes


def test_a_tree_of_modules_alone_sums_to_the_peak_and_names_what_has_no_module() -> None:
    peak = TRAINING.peak
    tree = module_tree.of_peak(TRAINING)
    assert tree is not None
    assert tree.size_bytes == peak.peak.allocated_bytes
    bare = module_tree.of_peak(replace(TRAINING, phases=(replace(peak, by_module={"": 5, "a.0.b": 6, "a.1.b": 7}),)))
    assert bare is not None
    assert {module_tree.label(child): child.size_bytes for child in bare.children} == {
        "outside of modules": 5,
        "a.*.b (2)": 13,
    }


def test_short_phases_have_room_on_the_axis_and_steps_stay_in_order() -> None:
    axis = RunAxis(TRAINING.samples)
    assert all(stretch.end - stretch.start > 0.04 for stretch in axis.stretches)
    places = [axis(sample.step) for sample in TRAINING.samples]
    assert places == sorted(places)
    assert (axis.stretches[0].start, pytest.approx(1.0)) == (0.0, axis.stretches[-1].end)
