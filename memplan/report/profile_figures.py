"""The pictures of a profile as plain text: every phase's peak as a bar, and the curve between them."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.timeline import Category, MemoryTimeline, PhaseMemory, Sample
from memplan.report import profile_words as words
from memplan.report.layout import Style
from memplan.report.run_axis import RunAxis
from memplan.units import format_gib

# Per category: its block, its letter where there are only letters, and its colour.
_SYMBOLS: dict[Category, tuple[str, str, str]] = {
    "weights": ("█", "w", "34"),
    "kv_cache": ("▚", "k", "32"),
    "activations": ("▓", "a", "35"),
    "gradients": ("▞", "g", "31"),
    "optimizer_state": ("▒", "o", "36"),
    "workspace": ("▌", "s", "33"),
    "unknown": ("░", "u", "90"),
}
_WIDEST = 100
_LEVELS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 6


def bars(timeline: MemoryTimeline, style: Style) -> str:
    """Return one bar per phase, all on one scale, with what was reserved beyond the allocated, and the legend."""
    merged = words.merged(timeline)
    longest = max(len(phase.phase) for phase, _ in merged)
    end = max([phase.peak_reserved_bytes for phase, _ in merged] + [phase.peak.allocated_bytes for phase, _ in merged])
    scale = max(end, words.room_bytes(timeline) or 0) if end * 4 > (words.room_bytes(timeline) or 0) else end
    width = min(style.width, _WIDEST) - longest - 3
    lines = []
    for phase, _ in merged:
        cells = _cells(phase, words.categories(timeline), scale, width)
        drawn = "".join(style.paint(_symbol(name, style) * number, _SYMBOLS[name][2]) for name, number in cells.items())
        reached = sum(cells.values())
        held = max(0, round(phase.peak_reserved_bytes / scale * width) - reached)
        rest = "·" if style.unicode else "."
        drawn += style.paint(rest * held, "90") + " " * max(0, width - reached - held)
        lines.append(f"{phase.phase.ljust(longest)} [{drawn}]")
    return "\n".join([*lines, _legend(timeline, style), f" the bars end at {_end(scale, words.room_bytes(timeline))}"])


def _cells(phase: PhaseMemory, names: Sequence[Category], scale: int, width: int) -> dict[Category, int]:
    """How many cells of a bar each category has: one at least, which the largest pays for."""
    cells: dict[Category, int] = {}
    total = 0
    for name in names:
        size = phase.by_category.get(name, 0)
        total += size
        cells[name] = max(1 if size else 0, round(total / scale * width) - sum(cells.values()))
    largest = max(cells, key=lambda name: cells[name], default=None)
    if largest is not None:
        cells[largest] -= max(0, sum(cells.values()) - width)
    return cells


def _end(scale_bytes: int, capacity_bytes: int | None) -> str:
    """Where the bars end, and what that has to do with the device."""
    size = format_gib(scale_bytes)
    if capacity_bytes is None or scale_bytes < capacity_bytes:
        return size
    return f"{size}, all that torch can have" if scale_bytes == capacity_bytes else f"{size}, more than there is"


def _symbol(name: Category, style: Style) -> str:
    return _SYMBOLS[name][0 if style.unicode else 1]


def _legend(timeline: MemoryTimeline, style: Style) -> str:
    parts = [
        (_symbol(name, style), words.CATEGORY_NAMES[name], _SYMBOLS[name][2]) for name in words.categories(timeline)
    ]
    parts.append(("·" if style.unicode else ".", "reserved, free", ""))
    lines: list[list[str]] = [[]]
    reached = 0
    for symbol, name, code in parts:
        length = len(name) + 2
        if lines[-1] and reached + 3 + length > style.width - 1:
            lines.append([])
            reached = 0
        reached += length + (3 if lines[-1] else 0)
        lines[-1].append(f"{style.paint(symbol, code)} {name}")
    return "\n".join(" " + "   ".join(line) for line in lines)


def curve(timeline: MemoryTimeline, style: Style) -> str:
    """Return allocated bytes over the run as a chart of blocks, with its phases below; nothing without samples."""
    samples = timeline.samples
    if len(samples) < 3 or not style.unicode:
        return ""
    width = min(style.width, _WIDEST) - 12
    axis = RunAxis(samples)
    columns = columns_of(samples, axis, width)
    floor = floor_bytes(samples)
    top = max(columns)
    if top <= floor:
        return ""
    eighths = [round((value - floor) / (top - floor) * _HEIGHT * 8) for value in columns]
    lines = []
    for row in range(_HEIGHT - 1, -1, -1):
        cells = "".join(_LEVELS[min(8, max(0, each - row * 8))] for each in eighths)
        mark = format_gib(top) if row == _HEIGHT - 1 else format_gib(floor) if row == 0 else ""
        lines.append(f"{mark.rjust(10)} {style.paint(cells, '35')}".rstrip())
    lines.append(f"{' ' * 11}{_phase_marks(axis, width)}".rstrip())
    about = " (cut at the foot)" if floor else ""
    return "\n".join([style.paint(f"allocated, over the run{about}", "1"), *lines])


def columns_of(samples: Sequence[Sample], axis: RunAxis, width: int) -> list[int]:
    """The largest allocated bytes of each of `width` equal parts of the run; a part without samples keeps the level."""
    columns = [-1] * width
    for sample in samples:
        at = min(width - 1, int(axis(sample.step) * width))
        columns[at] = max(columns[at], sample.allocated_bytes)
    level = max(0, samples[0].allocated_bytes)
    for at, value in enumerate(columns):
        level = value if value >= 0 else level
        columns[at] = level
    return columns


def floor_bytes(samples: Sequence[Sample]) -> int:
    """Where a chart may begin: just below what is held throughout once the model is loaded, if that is most of it."""
    held = [sample.allocated_bytes for sample in samples if sample.phase != "load"]
    least = min(held, default=0)
    return int(least * 0.98) if held and least > 0.6 * max(held) else 0


def _phase_marks(axis: RunAxis, width: int) -> str:
    """Every phase's name where it begins, as far as there is room."""
    line = ""
    for stretch in axis.stretches:
        at, text = int(stretch.start * width), f"|{stretch.phase}"
        if at >= len(line) and at + len(text) <= width:
            line = line.ljust(at) + text + " "
    return line
