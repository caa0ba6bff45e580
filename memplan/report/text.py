"""One budget, or several side by side, as text for a terminal.

Plain strings with optional ANSI colours: a table library would take longer to import than the whole answer takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.budget import Line, MemoryBudget
from memplan.records import dataclass
from memplan.units import GIB, format_count, format_gib

_VERDICTS = {"fits": ("FITS", "32"), "tight": ("TIGHT", "33"), "does_not_fit": ("DOES NOT FIT", "31")}
_BAR = {
    "weights": ("█", "34"),
    "activation_peak": ("▓", "35"),
    "cuda_graph": ("▒", "36"),
    "non_torch": ("▒", "36"),
    "kv_cache": ("▚", "32"),
    "outside_budget": ("░", "90"),
}


@dataclass(frozen=True, slots=True)
class Style:
    """How wide a page is, and whether it may have colours."""

    width: int = 100
    color: bool = False

    def paint(self, text: str, code: str) -> str:
        """Wrap `text` in a colour, if there are colours."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text


def render_budget(budget: MemoryBudget, style: Style) -> str:
    """Return the whole page of one budget."""
    sections = [_head(budget, style), _bar(budget, style), _lines(budget, style), _capacity(budget)]
    if budget.remedies:
        sections.append(_remedies(budget))
    if budget.warnings:
        sections.append("\n".join(f"note: {warning}" for warning in budget.warnings))
    return "\n\n".join(section for section in sections if section) + "\n"


def render_verdict(budget: MemoryBudget, style: Style) -> str:
    """Return the answer in one line."""
    return f"{_verdict(budget, style)}\n"


def _head(budget: MemoryBudget, style: Style) -> str:
    moe = f", {format_count(budget.active_parameters)} active" if budget.active_parameters != budget.parameters else ""
    title = f"{budget.model_name}  {format_count(budget.parameters)} parameters{moe}"
    gpus = f"{budget.num_gpus} x {budget.gpu_name}" if budget.num_gpus > 1 else budget.gpu_name
    where = f"{gpus} ({format_gib(budget.gpu_memory_bytes)} each)  {budget.engine_name} {budget.engine_version}"
    return f"{style.paint(title, '1')}\n{where}\n{_verdict(budget, style)}"


def _verdict(budget: MemoryBudget, style: Style) -> str:
    word, code = _VERDICTS[budget.verdict]
    reason = f": {'; '.join(budget.reasons)}" if budget.reasons else ""
    short = f" (short by {format_gib(budget.shortfall_bytes)})" if budget.shortfall_bytes > 0 else ""
    return style.paint(word, f"1;{code}") + reason + short


def _bar(budget: MemoryBudget, style: Style) -> str:
    """The GPU as a bar: what each group takes of it."""
    width = min(style.width, 100) - 4
    cells: list[str] = []
    total = max(budget.gpu_memory_bytes, budget.used_bytes)
    filled = 0
    reached = 0
    for line in _grouped(budget):
        reached += line.size_bytes
        end = round(reached / total * width)
        symbol, code = _BAR[line.group]
        cells.append(style.paint(symbol * (end - filled), code))
        filled = end
    return f"[{''.join(cells)}{'·' * (width - filled)}]"


def _grouped(budget: MemoryBudget) -> list[Line]:
    """One line per group, in the order of the budget."""
    seen: dict[str, Line] = {}
    for line in budget.lines:
        if line.group not in seen and budget.group_bytes(line.group) > 0:
            total = budget.group_bytes(line.group)
            seen[line.group] = Line(
                name=line.group,
                group=line.group,
                size_bytes=total,
                low_bytes=total,
                high_bytes=total,
                provenance=line.provenance,
                formula="",
            )
    return list(seen.values())


def _lines(budget: MemoryBudget, style: Style) -> str:
    rows = [
        (line.name, format_gib(line.size_bytes), _interval(line), line.provenance, line.formula)
        for line in budget.lines
        if line.size_bytes > 0
    ]
    unused = budget.gpu_memory_bytes - budget.used_bytes
    rows.append(("total used", format_gib(budget.used_bytes), "", "", ""))
    rows.append(("left unused", format_gib(unused), "", "", "device memory - total used"))
    return table(("per GPU", "size", "90 % interval", "how known", "working"), rows, style)


def _interval(line: Line) -> str:
    if line.low_bytes == line.high_bytes:
        return ""
    return f"{line.low_bytes / GIB:.2f} .. {line.high_bytes / GIB:.2f}"


def _capacity(budget: MemoryBudget) -> str:
    kv = budget.kv
    if kv.capacity_tokens is None:
        return ""
    parts = [
        f"KV cache: {format_gib(kv.bytes_per_token, digits=2)} per token"
        f" -> {kv.capacity_tokens:,} tokens in {kv.blocks or 0:,} blocks of {kv.block_size}",
        f"asked:    {kv.needed_tokens:,} tokens, {format_gib(kv.needed_bytes)}",
    ]
    if kv.max_concurrency is not None and kv.max_context_tokens is not None:
        parts.append(
            f"room for: {kv.max_concurrency:g} requests of that length, or one of {kv.max_context_tokens:,} tokens"
        )
    return "\n".join(parts)


def _remedies(budget: MemoryBudget) -> str:
    rows = [
        (f"  {remedy.change}", f"returns {format_gib(remedy.saves_bytes)}", remedy.verdict.replace("_", " "), remedy.note)
        for remedy in budget.remedies[:8]
    ]
    return "knobs, by what they return to the KV cache on each GPU:\n" + "\n".join(_columns(rows))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], style: Style) -> str:
    """Return aligned columns: the first and the last two to the left, sizes to the right."""
    body = _columns([tuple(header), *rows], right={1})
    return "\n".join([style.paint(body[0], "2"), *body[1:]])


def _columns(rows: Sequence[Sequence[str]], right: set[int] | None = None) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if right and column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
