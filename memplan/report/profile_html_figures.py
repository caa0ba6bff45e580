"""The figures of a profile's page as inline SVG: the curve, every phase's peak, the flame of what lived at the peak.

Each has a title and a description that say in words what it shows, and takes its colours from the page's style sheet.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from memplan.domain.timeline import Category, MemoryTimeline, PhaseMemory, Sample
from memplan.report import profile_words as words
from memplan.report.layout import printable
from memplan.report.module_tree import Node, label
from memplan.report.profile_figures import floor_bytes
from memplan.report.run_axis import RunAxis
from memplan.units import GIB, MIB, format_gib

COLORS: dict[Category, str] = {
    "weights": "weights",
    "kv_cache": "kv_asked",
    "activations": "activation_peak",
    "gradients": "gradients",
    "optimizer_state": "cuda_graph",
    "workspace": "workspace",
    "unknown": "outside_budget",
}
_WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 8, 22, 8
_CURVE_HEIGHT = 260
_MOST_POINTS = 340
_ROW = 40
_FLAME_ROW = 24
_FLAME_DEPTH = 7
_LETTER = 6.7


def legend(timeline: MemoryTimeline) -> str:
    """Return what the colours say, and the line of what is reserved."""
    items = [
        f'<li><span class="c-{COLORS[name]}"></span>{words.CATEGORY_NAMES[name]}</li>'
        for name in COLORS
        if name in words.categories(timeline) or any(sample.by_category.get(name) for sample in timeline.samples)
    ]
    return f'<ul class="key">{"".join(items)}<li><span class="line"></span>reserved</li></ul>'


def curve(timeline: MemoryTimeline, name: str, *, cut: bool = False) -> str:
    """Return allocated bytes by category over the run, with what was reserved above; nothing without samples.

    `cut` begins the scale just below what is held throughout, where that is most of it.
    """
    floor = floor_bytes(timeline.samples) if cut else 0
    if len(timeline.samples) < 3 or (cut and not floor):
        return ""
    samples = _fewer(timeline.samples, _MOST_POINTS)
    held = max(max(sample.reserved_bytes, sample.allocated_bytes) for sample in samples)
    capacity = words.room_bytes(timeline) or 0
    top = max(held, capacity) if not cut and capacity <= 1.6 * held else held
    frame = _Frame(samples, floor, top + (top - floor) // 40)
    drawn = [*frame.grid(), *_areas(samples, frame), _reserved(samples, frame), *_phases(frame)]
    if floor < capacity <= top:
        at = frame.y(capacity)
        drawn.append(
            f'<line class="end" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="halo" x="{_WIDTH - _RIGHT - 2}" y="{at + 14:.1f}" text-anchor="end">'
            f"all that torch can have: {format_gib(capacity)}</text>"
        )
    said = "; ".join(
        f"{phase.phase}: from {format_gib(phase.before.allocated_bytes)} over {format_gib(phase.peak.allocated_bytes)}"
        f" to {format_gib(phase.after.allocated_bytes)}"
        for phase, _ in words.merged(timeline)
    )
    title = "Allocated memory over the run" + (f", from {format_gib(floor)} up" if floor else "")
    return _svg(f"{name}-{'cut' if cut else 'curve'}", _CURVE_HEIGHT, title, said, "".join(drawn))


class _Frame:
    """From steps and bytes to places in the picture."""

    __slots__ = ("_floor", "_top", "axis")

    def __init__(self, samples: Sequence[Sample], floor: int, top: int) -> None:
        self.axis = RunAxis(samples)
        self._floor, self._top = floor, max(top, floor + 1)

    def x(self, step: int) -> float:
        return _LEFT + self.axis(step) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, size_bytes: int) -> float:
        share = (max(size_bytes, self._floor) - self._floor) / (self._top - self._floor)
        return _CURVE_HEIGHT - _BOTTOM - share * (_CURVE_HEIGHT - _BOTTOM - _TOP)

    def grid(self) -> list[str]:
        """Lines at round sizes, with the sizes beside them."""
        step = round_step(self._top - self._floor)
        drawn = []
        for tick in range(-(-self._floor // step) * step, self._top, step):
            at = self.y(tick)
            drawn.append(
                f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                f'<text class="faint" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{_tick(tick, step)}</text>'
            )
        return drawn


def round_step(reach_bytes: int) -> int:
    """The distance of three to seven lines over `reach_bytes`: 1, 2, 5, 10 GiB and so on, halves below."""
    step = 1
    while reach_bytes > 7 * step and step < GIB:
        step *= 2
    while reach_bytes > 7 * step:
        step = step * 5 // 2 if str(step // GIB)[0] == "2" else step * 2
    return step


def _tick(size_bytes: int, step: int) -> str:
    if size_bytes == 0:
        return "0"
    if step >= GIB:
        return f"{size_bytes / GIB:,.0f} GiB"
    if step >= MIB and size_bytes >= GIB:
        return f"{size_bytes / GIB:,.2f} GiB"
    return f"{size_bytes / MIB:,.0f} MiB" if step >= MIB else format_gib(size_bytes)


def _fewer(samples: Sequence[Sample], most: int) -> list[Sample]:
    """At most about `most` samples: the first and the fullest of equal parts of the run, and the last of all."""
    if len(samples) <= most:
        return list(samples)
    kept: list[Sample] = []
    width = -(-len(samples) // (most // 2))
    for start in range(0, len(samples), width):
        part = samples[start : start + width]
        fullest = max(part, key=lambda sample: sample.allocated_bytes)
        kept += [part[0]] if part[0] is fullest else [part[0], fullest]
    return kept if kept[-1] is samples[-1] else [*kept, samples[-1]]


def _areas(samples: Sequence[Sample], frame: _Frame) -> list[str]:
    """One area per category, each upon the one before: a level holds until the next sample."""
    below = [0] * len(samples)
    drawn = []
    for name, color in COLORS.items():
        above = [base + sample.by_category.get(name, 0) for base, sample in zip(below, samples, strict=True)]
        if above != below:
            there = _stairs(samples, above, frame)
            back = _stairs(samples, below, frame)[::-1]
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in [*there, *back])
            drawn.append(f'<path class="c-{color}" d="M{path}Z"><title>{words.CATEGORY_NAMES[name]}</title></path>')
        below = above
    return drawn


def _stairs(samples: Sequence[Sample], levels: Sequence[int], frame: _Frame) -> list[tuple[float, float]]:
    """The corners of a level over the steps; corners on a straight line are left out."""
    points: list[tuple[float, float]] = []
    for sample, level in zip(samples, levels, strict=True):
        x, y = frame.x(sample.step), frame.y(level)
        if points and abs(points[-1][1] - y) < 0.05:
            continue
        if points:
            points.append((x, points[-1][1]))
        points.append((x, y))
    points.append((frame.x(samples[-1].step), points[-1][1]))
    return points


def _reserved(samples: Sequence[Sample], frame: _Frame) -> str:
    corners = _stairs(samples, [sample.reserved_bytes for sample in samples], frame)
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    return f'<path class="whisker" fill="none" d="M{path}"><title>reserved</title></path>'


def _phases(frame: _Frame) -> list[str]:
    """A line where each phase begins, with its name where there is room."""
    drawn, free_from = [], 0.0
    room = _WIDTH - _LEFT - _RIGHT
    for stretch in frame.axis.stretches:
        at, end = _LEFT + stretch.start * room, _LEFT + stretch.end * room
        if at > _LEFT + 1:
            bottom = _CURVE_HEIGHT - _BOTTOM
            drawn.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{bottom}"/>')
        if at >= free_from and end - at > len(stretch.phase) * _LETTER:
            drawn.append(f'<text class="faint" x="{at + 4:.1f}" y="12">{stretch.phase}</text>')
            free_from = at + len(stretch.phase) * _LETTER + 4
    return drawn


def bars(timeline: MemoryTimeline, name: str, *, scale_bytes: int = 0) -> str:
    """Return one bar per phase, by category at its peak, framed by what was reserved; marks say before and after.

    `scale_bytes` draws two pages on one scale: no bar is longer than that.
    """
    merged = words.merged(timeline)
    longest = max(max(phase.peak_reserved_bytes, phase.peak.allocated_bytes) for phase, _ in merged)
    held = max(longest, scale_bytes)
    capacity = words.room_bytes(timeline) or 0
    scale = max(held, capacity) if capacity <= 3 * held else held
    label_width = max(len(phase.phase) for phase, _ in merged) * _LETTER + 14
    room = _WIDTH - label_width - 80
    drawn = []
    for number, (phase, _) in enumerate(merged):
        drawn += _bar(phase, label_width, room / scale, number * _ROW + 10, timeline)
    bottom = len(merged) * _ROW + 6
    if capacity and scale >= capacity:
        at = label_width + capacity * room / scale
        drawn.append(f'<line class="end" x1="{at:.1f}" x2="{at:.1f}" y1="2" y2="{bottom}"/>')
        drawn.append(
            f'<text class="faint" x="{at - 4:.1f}" y="{bottom + 10}" text-anchor="end">all that torch can have: '
            f"{format_gib(capacity)}</text>"
        )
        bottom += 14
    said = "; ".join(
        f"{phase.phase}: {format_gib(phase.peak.allocated_bytes)}, reserved {format_gib(phase.peak_reserved_bytes)}"
        for phase, _ in merged
    )
    return _svg(f"{name}-bars", bottom + 4, "Every phase at its peak", said, "".join(drawn))


def _bar(phase: PhaseMemory, left: float, scale: float, top: int, timeline: MemoryTimeline) -> list[str]:
    drawn = [f'<text x="{left - 8:.1f}" y="{top + 15}" text-anchor="end">{phase.phase}</text>']
    at = left
    for category in words.categories(timeline):
        size = phase.by_category.get(category, 0)
        if size:
            about = f"<title>{words.CATEGORY_NAMES[category]} {format_gib(size)}</title>"
            drawn.append(
                f'<rect class="c-{COLORS[category]}" x="{at:.2f}" y="{top}" width="{max(0.6, size * scale):.2f}" '
                f'height="20">{about}</rect>'
            )
            at += size * scale
    reserved = max(1.0, phase.peak_reserved_bytes * scale)
    drawn.append(f'<rect class="frame" x="{left:.1f}" y="{top - 0.5}" width="{reserved:.2f}" height="21"/>')
    for mark, size in (("before", phase.before.allocated_bytes), ("after", phase.after.allocated_bytes)):
        x = left + size * scale
        y = top - 5 if mark == "before" else top + 20
        about = f"<title>{mark}: {format_gib(size)}</title>"
        drawn.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 5}">{about}</line>')
    end = max(left + reserved, at) + 6
    anchor, x = ("start", end) if end < _WIDTH - 66 else ("end", float(_WIDTH))
    drawn.append(
        f'<text x="{x:.1f}" y="{top + 15}" text-anchor="{anchor}">{format_gib(phase.peak.allocated_bytes)}</text>'
    )
    return drawn


def flame(tree: Node, name: str, title: str) -> str:
    """Return what was alive as a flame from the top: every box is a module, as wide as its bytes, above its parts."""
    drawn: list[str] = []
    depth = _boxes(tree, 0.0, float(_WIDTH), 0, tree.size_bytes, "", drawn)
    said = "; ".join(f"{label(child)} {format_gib(child.size_bytes)}" for child in tree.children[:8])
    return _svg(f"{name}-flame", depth * _FLAME_ROW + 2, title, said or "nothing", "".join(drawn))


def _boxes(node: Node, left: float, width: float, depth: int, total: int, color: str, drawn: list[str]) -> int:
    """Draw a node and what is below it, and return the number of rows."""
    color = color or _category_color(node.name)
    plain = printable(label(node))
    about = f"{escape(plain)}: {format_gib(node.size_bytes)}, {100 * node.size_bytes / max(1, total):.1f} %"
    top = depth * _FLAME_ROW + 1
    drawn.append(
        f'<rect class="{color or "box"}" x="{left + 0.5:.2f}" y="{top}" width="{max(0.4, width - 1):.2f}" '
        f'height="{_FLAME_ROW - 2}"><title>{about}</title></rect>'
    )
    shown = _shortened(plain, f"{plain} {format_gib(node.size_bytes)}" if depth else plain, int((width - 8) / _LETTER))
    if shown:
        kind = ' class="on"' if color else ""
        drawn.append(f'<text{kind} x="{left + 5:.1f}" y="{top + 15}">{escape(shown)}</text>')
    deepest = depth + 1
    if depth + 1 >= _FLAME_DEPTH:
        return deepest
    at = left
    for child in node.children:
        part = width * child.size_bytes / max(1, node.size_bytes)
        if part >= 0.8:
            deepest = max(deepest, _boxes(child, at, part, depth + 1, total, color, drawn))
        at += part
    return deepest


def _category_color(name: str) -> str:
    return next((f"c-{color}" for category, color in COLORS.items() if words.CATEGORY_NAMES[category] == name), "")


def _shortened(plain: str, whole: str, letters: int) -> str:
    """As much of a box's text as has room on it."""
    if letters >= len(whole):
        return whole
    return plain if letters >= len(plain) else plain[: letters - 1] + "…" if letters >= 4 else ""


def _svg(name: str, height: int, title: str, described: str, drawn: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(printable(described))}</desc>{drawn}'
        "</svg>"
    )
