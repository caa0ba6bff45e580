"""An HTML page as a parser sees it: a tag that is not closed, or stands where it must not, fails."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

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
