"""The figures of the HTML page as inline SVG: the GPU as a bar, every group with its interval, the context map.

Each has a title and a description that say in words what it shows, and takes its colours from the page's style sheet.
"""

from __future__ import annotations

from html import escape

from memplan.domain.budget import ContextMap, MemoryBudget
from memplan.report import grid, words, working
from memplan.units import format_gib

_WIDTH = 760
_LABEL, _VALUE = 150, 90
_ROW = 26


def bar(budget: MemoryBudget, name: str) -> str:
    """Return the fullest GPU as a stacked bar with the marks of utilization and of its end. `name` makes ids unique."""
    parts = working.segments(budget)
    total = sum(size for _, _, size in parts)
    drawn = []
    left = 0.0
    for key, title, size in parts:
        width = size / total * _WIDTH
        about = f"<title>{escape(title)} {format_gib(size)}</title>"
        inner = max(0.4, width - 1)
        drawn.append(
            f'<rect class="c-{key}" x="{left:.2f}" y="20" width="{inner:.2f}" height="40">{about}</rect>'
            + _inside(title, left, width, key)
        )
        left += width
    end = budget.gpu_memory_bytes / total * _WIDTH
    drawn.append(f'<rect class="frame" x="0.5" y="19.5" width="{max(1.0, end - 1):.2f}" height="41"/>')
    utilization = budget.settings.get("gpu_memory_utilization")
    if isinstance(utilization, float) and 0 < utilization < 1:
        drawn.append(_mark(utilization * end, 12, 60, f"utilization {utilization:g}", 10))
    drawn.append(
        _mark(end, 20, 68, f"the {words.device(budget)} ends at {format_gib(budget.gpu_memory_bytes)}", 80, "end")
    )
    described = ", ".join(f"{title} {format_gib(size)}" for _, title, size in parts)
    return drawing(f"{name}-bar", 86, f"What {words.each_gpu(budget)} would hold", described, "".join(drawn))


def _inside(title: str, left: float, width: float, key: str) -> str:
    """A part's name on the part itself, where it has room and the part has no colour of its own."""
    if key != "unused" or width < 7 * len(title) + 8:
        return ""
    return f'<text class="faint" x="{left + width / 2:.1f}" y="44" text-anchor="middle">{escape(title)}</text>'


def _mark(at: float, top: int, bottom: int, text: str, text_y: int, kind: str = "axis") -> str:
    """A vertical line with its text, which stays within the figure."""
    anchor = "end" if at > _WIDTH / 2 else "start"
    beside = at - 4 if anchor == "end" else at + 4
    line_at = min(max(at, 1), _WIDTH - 1)
    return (
        f'<line class="{kind}" x1="{line_at:.1f}" x2="{line_at:.1f}" y1="{top}" y2="{bottom}"/>'
        f'<text class="faint" x="{beside:.1f}" y="{text_y}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def legend(budget: MemoryBudget) -> str:
    """Return the bar's parts as a list: colour, name and size."""
    items = (
        f'<li><span class="c-{key}"></span>{escape(title)} {format_gib(size)}</li>'
        for key, title, size in working.segments(budget)
    )
    return f'<ul class="key">{"".join(items)}</ul>'


def intervals(budget: MemoryBudget, name: str) -> str:
    """Return one bar per group with a whisker over its 90 % interval, all from zero on one scale."""
    rows = [
        (group, title, *(sum(getattr(line, field) for line in lines) for field in _FIELDS))
        for group, title, lines in working.grouped(budget)
    ]
    widest = max([high for *_, high in rows] + [1])
    room = _WIDTH - _LABEL - _VALUE
    drawn, said = [], []
    for number, (group, title, size, low, high) in enumerate(rows):
        top = number * _ROW
        start, width, first, last = (_LABEL + max(0, n) / widest * room for n in (0, size, low, high))
        key = "kv_asked" if group == "kv_cache" else group
        drawn.append(
            f'<text x="{_LABEL - 8}" y="{top + 17}" text-anchor="end">{escape(title)}</text>'
            f'<rect class="c-{key}" x="{start}" y="{top + 6}" width="{max(0.4, width - start):.2f}" height="14"/>'
            f'<text x="{_WIDTH}" y="{top + 17}" text-anchor="end">{format_gib(size)}</text>'
        )
        if low != high:
            middle = top + 13
            drawn.append(
                f'<path class="whisker" fill="none" d="M{first:.2f} {middle}H{last:.2f}'
                f'M{first:.2f} {middle - 5}v10M{last:.2f} {middle - 5}v10"/>'
            )
        said.append(f"{title} {format_gib(size)}, between {format_gib(low)} and {format_gib(high)}")
    height = max(1, len(rows)) * _ROW + 4
    return drawing(f"{name}-intervals", height, "Sizes with their 90 % intervals", "; ".join(said), "".join(drawn))


_FIELDS = ("size_bytes", "low_bytes", "high_bytes")


def context_map(found: ContextMap, name: str) -> str:
    """Return a grid of lengths and numbers of requests: what part of the KV cache they take, or that they have no
    room.
    """
    numbers = grid.counts(found)
    columns = len(found.context_tokens)
    width = min(70.0, (_WIDTH - 80) / max(1, columns))
    drawn = []
    for column, tokens in enumerate(found.context_tokens):
        middle = 80 + (column + 0.5) * width
        drawn.append(
            f'<text class="faint" x="{middle:.1f}" y="14" text-anchor="middle">{grid.short_tokens(tokens)}</text>'
        )
    for row, number in enumerate(numbers):
        top = 22 + row * _ROW
        drawn.append(f'<text class="faint" x="72" y="{top + 17}" text-anchor="end">{number:,}</text>')
        for column, limit in enumerate(found.max_concurrency):
            drawn.append(_cell(80 + column * width, top, width, grid.share_of(number, limit)))
    bottom = 22 + len(numbers) * _ROW
    drawn.append(f'<text x="72" y="{bottom + 17}" text-anchor="end">at most</text>')
    for column, limit in enumerate(found.max_concurrency):
        middle = 80 + (column + 0.5) * width
        drawn.append(f'<text x="{middle:.1f}" y="{bottom + 17}" text-anchor="middle">{grid.short_number(limit)}</text>')
    said = "; ".join(
        f"{tokens:,} tokens: at most {grid.short_number(limit)} requests"
        for tokens, limit in zip(found.context_tokens, found.max_concurrency, strict=True)
    )
    return drawing(f"{name}-map", bottom + 26, "Requests that have room at once, by their length", said, "".join(drawn))


def _cell(left: float, top: int, width: float, share: float | None) -> str:
    step = "none" if share is None else f"h{grid.step_of(share)}"
    text = "-" if share is None else f"{share * 100:.0f} %"
    shape = (
        ""
        if share is None
        else (f'<rect class="{step}" x="{left + 1:.1f}" y="{top + 1}" width="{width - 2:.1f}" height="{_ROW - 2}"/>')
    )
    color = "faint" if share is None else step
    return f'{shape}<text class="{color}" x="{left + width / 2:.1f}" y="{top + 17}" text-anchor="middle">{text}</text>'


def drawing(name: str, height: int, title: str, described: str, drawn: str) -> str:
    """Return a figure with its title and what it shows in words; `name` makes its ids unique on a page."""
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(described)}</desc>{drawn}</svg>'
    )
