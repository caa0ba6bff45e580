"""The HTML page: well formed, self-contained, escaped, and readable in light and dark."""

from __future__ import annotations

import re
from collections import Counter

import made_budgets
import pytest
import recorded_estimates
from hypothesis import given, settings
from parsed_page import Page

from memplan.domain.budget import MemoryBudget
from memplan.report.html import html_holders, html_report
from memplan.report.html_style import BAR_KEYS, DARK, LIGHT, style_sheet


def pages() -> dict[str, str]:
    recorded = [recorded_estimates.read_budget(name) for name in recorded_estimates.names()]
    return {
        "fitting": html_report([made_budgets.fitting()]),
        "too large": html_report([made_budgets.too_large()]),
        "encoder": html_report([made_budgets.encoder()]),
        "several": html_report(made_budgets.several()),
        "recorded": html_report(recorded),
        "holders": html_holders(made_budgets.holders()),
        "hostile": html_report([made_budgets.hostile(), made_budgets.hostile()]),
    }


@pytest.mark.parametrize("name", pages())
def test_a_page_is_well_formed_and_fetches_nothing(name: str) -> None:
    text = pages()[name]
    page = Page(text)
    assert text.startswith("<!doctype html>\n<html lang=")
    assert [page.counts[tag] for tag in ("html", "head", "body", "main", "h1", "title")][:5] == [1] * 5
    assert page.outside == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "style "} & set(page.counts)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert max(Counter(page.ids).values(), default=1) == 1


def test_a_page_without_curves_has_no_style_for_them() -> None:
    assert not any(".line-" in text for text in pages().values())


@pytest.mark.parametrize("name", pages())
def test_every_figure_says_in_words_what_it_shows(name: str) -> None:
    page = Page(pages()[name])
    assert page.counts["desc"] == page.counts["svg"]
    assert len(page.labels) == 2 * page.counts["svg"]
    assert set(page.labels) <= set(page.ids)
    assert page.counts["caption"] == page.counts["table"]


def test_hostile_names_become_text_and_no_tag() -> None:
    hostile, plain = Page(html_report([made_budgets.hostile()])), Page(html_report([made_budgets.too_large()]))
    assert "script" not in hostile.counts
    assert set(hostile.counts) == set(plain.counts)
    assert any("<script>alert(1)</script>" in words for words in hostile.words)
    assert "\x1b" not in html_report([made_budgets.hostile()])


@settings(max_examples=60)
@given(budget=made_budgets.any_budget())
def test_any_budget_makes_a_well_formed_page(budget: MemoryBudget) -> None:
    Page(html_report([budget]))


def test_the_page_says_every_size_of_the_text_page() -> None:
    text = html_report([made_budgets.fitting()])
    for size in ("15.00 GiB", "0.50 GiB", "5.78 GiB", "47,360 tokens", "128 KiB", "--kv-dtype fp8", "0.40-0.70"):
        assert size in text


def test_the_bar_of_a_page_is_as_long_as_its_figure() -> None:
    for name in ("fitting", "too large"):
        svg = re.search(r"<svg.*?</svg>", pages()[name], re.DOTALL)
        assert svg is not None
        rects = re.findall(r'class="c-\w+" x="([\d.]+)" y="20" width="([\d.]+)"', svg[0])
        ends = [float(left) + float(width) for left, width in rects]
        assert ends == sorted(ends)
        assert 755 <= ends[-1] <= 760.5


def luminance(color: str) -> float:
    """The relative luminance of `#rrggbb`, as WCAG 2.2 defines it."""
    parts = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_marks_stand_out_in_both_themes(theme: dict[str, str]) -> None:
    for text in ("text", "muted", "link", "fits", "tight", "no"):
        assert contrast(theme[text], theme["page"]) >= 4.5, text
        assert contrast(theme[text], theme["card"]) >= 4.5, text
    for mark in BAR_KEYS:
        assert contrast(theme[mark], theme["page"]) >= 3 or mark == "unused", mark
    for step in range(4):
        assert contrast(theme[f"heat{step}-text"], theme[f"heat{step}"]) >= 4.5, step


def test_the_style_sheet_knows_both_themes_and_paper() -> None:
    sheet = style_sheet()
    assert "prefers-color-scheme: dark" in sheet
    assert "@media print" in sheet
    assert set(LIGHT) == set(DARK)
    assert sheet.count("{") == sheet.count("}")
    assert set(re.findall(r"var\(--([\w-]+)\)", sheet)) <= set(LIGHT)
