"""The HTML page: well formed, self-contained, escaped, and readable in light and dark."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

import made_budgets
import pytest
import recorded_estimates
from hypothesis import given, settings

from memplan.domain.budget import MemoryBudget
from memplan.report.html import html_holders, html_report
from memplan.report.html_style import BAR_KEYS, DARK, LIGHT, style_sheet

VOID = {"meta"}
HOLDS_ONLY = {
    "ul": {"li"},
    "dl": {"dt", "dd"},
    "table": {"caption", "thead", "tbody"},
    "thead": {"tr"},
    "tbody": {"tr"},
    "tr": {"th", "td"},
}
HOLDS_NO_BLOCKS = {"p", "h1", "h2", "h3", "span", "code", "caption", "figcaption", "dt", "text", "title", "desc"}
BLOCKS = {"p", "div", "table", "ul", "dl", "figure", "h1", "h2", "h3", "svg"}


class Page(HTMLParser):
    """A page as a parser sees it; a tag that is not closed, or stands where it must not, fails."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.counts: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.outside: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        parent = self.open[-1] if self.open else ""
        assert tag in HOLDS_ONLY.get(parent, {tag}), f"<{tag}> in <{parent}>"
        assert not (parent in HOLDS_NO_BLOCKS and tag in BLOCKS), f"<{tag}> in <{parent}>"
        self.counts[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")
            if name == "aria-labelledby":
                self.labels += (value or "").split()
            if name in ("src", "srcset", "action", "style") or name.startswith("on"):
                self.outside.append(f"{tag} {name}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


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
