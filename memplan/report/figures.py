"""The pictures of a text page: the GPU as a bar, and how many requests have room at which length."""

from __future__ import annotations

from memplan.domain.budget import ContextMap, MemoryBudget
from memplan.report import grid, words, working
from memplan.report.layout import Cell, Style, paragraph, table
from memplan.units import format_gib

# Per part of the bar: its block, its letter where there are only letters, and its colour.
_SYMBOLS = {
    "weights": ("█", "w", "34"),
    "activation_peak": ("▓", "a", "35"),
    "cuda_graph": ("▒", "g", "36"),
    "non_torch": ("▌", "t", "33"),
    "kv_asked": ("▚", "k", "1;32"),
    "kv_spare": ("▖", "-", "32"),
    "outside_budget": ("░", "o", "90"),
    "unused": ("·", ".", "90"),
    "missing": ("×", "x", "1;31"),
}
_WIDEST_BAR = 100
_STEPS = ("░", "▒", "▓", "█")
_ASCII_STEPS = (".", "+", "*", "#")
_STEP_CODES = ("32", "32", "33", "33")


def bar(budget: MemoryBudget, style: Style) -> str:
    """Return the fullest GPU as a bar with its marks, and the legend below."""
    parts = working.segments(budget)
    total = sum(size for _, _, size in parts)
    width = min(style.width, _WIDEST_BAR) - 2
    cells = _cells([size for _, _, size in parts], width)
    drawn = "".join(
        style.paint(_symbol(key, style) * number, _SYMBOLS[key][2])
        for (key, _, _), number in zip(parts, cells, strict=True)
    )
    lines = [_bar_title(budget), f"[{drawn}]", _marks(budget, total, width), _legend(parts, style)]
    return "\n".join(line for line in lines if line)


def _symbol(key: str, style: Style) -> str:
    return _SYMBOLS[key][0 if style.unicode else 1]


def _bar_title(budget: MemoryBudget) -> str:
    used, memory = format_gib(budget.used_bytes), format_gib(budget.gpu_memory_bytes)
    which = "the fullest GPU" if budget.num_gpus > 1 else f"the {words.device(budget)}"
    if budget.used_bytes > budget.gpu_memory_bytes:
        return f"{which} would hold {used}, it has {memory}"
    return f"{which} holds {used} of {memory}"


def _cells(sizes: list[int], width: int) -> list[int]:
    """Share out the cells of a bar; every part has one at least, and the largest pays for that."""
    total = sum(sizes)
    cells = [max(1, round(size / total * width)) for size in sizes]
    largest = sizes.index(max(sizes))
    cells[largest] += width - sum(cells)
    return cells


def _marks(budget: MemoryBudget, total: int, width: int) -> str:
    """The line below the bar: where utilization ends the engine's part, and where the GPU ends."""
    end = round(budget.gpu_memory_bytes / total * width)
    line = ""
    utilization = budget.settings.get("gpu_memory_utilization")
    if isinstance(utilization, float) and 0 < utilization < 1:
        text = f"utilization {utilization:g} ^"
        reached = round(utilization * budget.gpu_memory_bytes / total * width)
        line = text.rjust(reached) if reached >= len(text) else ""
    if end < width:
        text = f"^ the {words.device(budget)} ends at {format_gib(budget.gpu_memory_bytes)}"
        if len(line) < end and end + len(text) <= width + 1:
            line = line.ljust(end) + text
        else:
            line = f"the {words.device(budget)} ends at {format_gib(budget.gpu_memory_bytes)} ^".rjust(end + 1)
    return f" {line}" if line.strip() else ""


def _legend(parts: list[tuple[str, str, int]], style: Style) -> str:
    lines: list[list[str]] = [[]]
    reached = 0
    for key, name, size in parts:
        text = f"{_symbol(key, style)} {name} {format_gib(size)}"
        if lines[-1] and reached + 3 + len(text) > style.width - 1:
            lines.append([])
            reached = 0
        reached += len(text) + (3 if lines[-1] else 0)
        symbol = style.paint(text[0], _SYMBOLS[key][2])
        lines[-1].append(symbol + text[1:])
    return "\n".join(" " + "   ".join(line) for line in lines)


def context_map(found: ContextMap, style: Style) -> str:
    """Return which numbers of requests have room at which lengths, and how much of the cache they take."""
    title = style.paint("requests that have room at once, by their length in tokens", "1")
    columns = list(zip(found.context_tokens, found.max_concurrency, strict=True))
    widest = max(len(text) for column in columns for text in _map_ends(*column))
    per_part = max(1, (style.width - 12) // (max(3, widest) + 2))
    parts = []
    for start in range(0, len(columns), per_part):
        chosen = columns[start : start + per_part]
        heads, ends = zip(*(_map_ends(*column) for column in chosen), strict=True)
        rows: list[list[Cell]] = [["requests", *((text, "2") for text in heads), ""]]
        for number in grid.counts(found):
            rows.append([f"{number:,}".rjust(8), *(_map_cell(number, limit, style) for _, limit in chosen), ""])
        rows.append([("at most", "1"), *((text, "1") for text in ends), ""])
        parts.append(table(rows, style, right=frozenset(range(1, len(chosen) + 1)), indent="  "))
    return "\n".join([title, *parts, _map_legend(style)])


def _map_ends(tokens: int, limit: float) -> tuple[str, str]:
    """What stands at the head and at the foot of a length's column."""
    return grid.short_tokens(tokens), grid.short_number(limit)


def _map_cell(number: int, limit: float, style: Style) -> Cell:
    share = grid.share_of(number, limit)
    if share is None:
        return "-", "90"
    step = grid.step_of(share)
    return (_STEPS if style.unicode else _ASCII_STEPS)[step] * 3, _STEP_CODES[step]


def _map_legend(style: Style) -> str:
    symbols = _STEPS if style.unicode else _ASCII_STEPS
    steps = (f"{symbol} {share * 100:.0f} %" for symbol, share in zip(symbols, grid.STEPS, strict=True))
    return paragraph(f"part of the KV cache taken, up to {', '.join(steps)}; - no room", style)
