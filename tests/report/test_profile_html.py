"""The HTML page of a profile: well formed, self-contained, escaped, with a curve, a flame, phases before and after."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import made_timelines
import pytest
from parsed_page import Page
from test_html_report import contrast

from memplan.domain.timeline import CATEGORIES
from memplan.report.html_style import DARK, LIGHT
from memplan.report.profile_comparison import compare
from memplan.report.profile_html import html_comparison, html_profiles
from memplan.report.profile_html_figures import COLORS, round_step
from memplan.units import GIB, MIB

SERVING, FULL = made_timelines.serving(), made_timelines.out_of_memory()


def pages() -> dict[str, str]:
    return {
        "serving": html_profiles([SERVING]),
        "out of memory": html_profiles([FULL]),
        "training": html_profiles([made_timelines.training(iterations=3, grows_bytes=1 << 28)]),
        "bare": html_profiles([made_timelines.bare()]),
        "several": html_profiles([SERVING, FULL, made_timelines.training()]),
        "hostile": html_profiles([made_timelines.hostile()]),
        "before and after": html_comparison(compare(FULL, SERVING)),
        "two that share nothing": html_comparison(compare(made_timelines.training(), made_timelines.hostile())),
    }


@pytest.mark.parametrize("name", pages())
def test_a_page_is_well_formed_and_fetches_nothing(name: str) -> None:
    text = pages()[name]
    page = Page(text)
    assert text.startswith("<!doctype html>\n<html lang=")
    assert [page.counts[tag] for tag in ("html", "head", "body", "main", "h1")] == [1] * 5
    assert page.outside == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.counts)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(set(page.ids)) == len(page.ids)
    assert "\x1b" not in text


@pytest.mark.parametrize("name", pages())
def test_every_figure_says_in_words_what_it_shows(name: str) -> None:
    page = Page(pages()[name])
    assert page.counts["desc"] == page.counts["svg"]
    assert len(page.labels) == 2 * page.counts["svg"]
    assert set(page.labels) <= set(page.ids)
    assert page.counts["caption"] == page.counts["table"]


def test_a_page_has_the_curve_its_upper_part_the_bars_and_two_flames() -> None:
    page = Page(pages()["serving"])
    kinds = {name.removeprefix("p1-").removesuffix("-t") for name in page.ids if name.endswith("-t")}
    assert kinds == {"curve", "cut", "bars", "all-flame", "rest-flame"}
    assert {name.removeprefix("p1-").removesuffix("-t") for name in Page(pages()["bare"]).ids if "-t" in name} == {
        "bars",
        "all-flame",
    }


def test_the_page_says_what_the_text_page_says() -> None:
    text = pages()["serving"]
    for said in (
        "16.26 GiB allocated in prefill",
        "6.19 GiB left",
        "logits_to_keep=1",
        "bandwidth",
        "-50.0 %, outside",
    ):
        assert said in text
    assert "OUT OF MEMORY" in pages()["out of memory"]


def test_the_areas_of_the_curve_end_where_the_run_does() -> None:
    svg = re.search(r"<svg.*?</svg>", pages()["serving"], re.DOTALL)
    assert svg is not None
    corners = [float(x) for path in re.findall(r'd="M([^"Z]*)Z"', svg[0]) for x in re.findall(r"([\d.]+) [\d.]+", path)]
    assert min(corners) == pytest.approx(74, abs=0.1)
    assert max(corners) == pytest.approx(752, abs=0.1)


def test_boxes_of_a_flame_lie_within_the_box_above() -> None:
    for svg in re.findall(r"<svg[^>]*flame.*?</svg>", pages()["serving"], re.DOTALL):
        rows: dict[float, list[tuple[float, float]]] = {}
        for left, top, width in re.findall(r'x="([\d.]+)" y="(\d+)" width="([\d.]+)"', svg):
            rows.setdefault(float(top), []).append((float(left), float(left) + float(width)))
        levels = [rows[top] for top in sorted(rows)]
        assert len(levels) >= 4
        for above, below in pairwise(levels):
            for left, right in below:
                assert any(start - 0.6 <= left and right <= end + 0.6 for start, end in above)


def test_both_sides_of_a_comparison_are_drawn_on_one_scale() -> None:
    small = replace(made_timelines.training(), capacity_bytes=None)
    text = html_comparison(compare(SERVING, small))
    bars = re.findall(r"<svg[^>]*(?:before|after)-bars.*?</svg>", text, re.DOTALL)
    lengths = [max(float(width) for width in re.findall(r'class="frame"[^>]*width="([\d.]+)"', svg)) for svg in bars]
    assert lengths[1] < 0.7 * lengths[0]


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_category_has_a_colour_of_its_own_that_carries_text(theme: dict[str, str]) -> None:
    colors = [theme[COLORS[name]] for name in CATEGORIES]
    assert len(set(colors)) == len(CATEGORIES)
    for color in colors:
        assert contrast(theme["on"], color) >= 4.5, color
        assert contrast(color, theme["page"]) >= 3, color


@pytest.mark.parametrize(
    ("reach", "step"), [(16 * GIB, 5 * GIB), (7 * GIB, GIB), (GIB, 256 * MIB), (300 * GIB, 50 * GIB)]
)
def test_lines_stand_at_round_sizes(reach: int, step: int) -> None:
    assert round_step(reach) == step
