"""A budget's numbers in the order and the words in which every format shows them: the table of lines, what is left of
the GPU, the parts of the bar.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.budget import Group, Line, MemoryBudget
from memplan.records import dataclass
from memplan.report import words
from memplan.units import GIB, KIB, MIB, format_gib

GROUPS: tuple[tuple[Group, str], ...] = (
    ("weights", "weights"),
    ("activation_peak", "activation peak"),
    ("cuda_graph", "CUDA graphs"),
    ("non_torch", "outside torch"),
    ("kv_cache", "KV cache"),
    ("outside_budget", "outside the budget"),
)

_ROUNDING_BYTES = GIB // 20


def grouped(budget: MemoryBudget) -> list[tuple[Group, str, tuple[Line, ...]]]:
    """The lines by group, in the order in which pages show them; lines and groups of nothing are left out."""
    by_group = {
        group: [line for line in budget.lines if line.group == group and line.size_bytes] for group, _ in GROUPS
    }
    return [(group, name, tuple(by_group[group])) for group, name in GROUPS if by_group[group]]


def segments(budget: MemoryBudget) -> list[tuple[str, str, int]]:
    """The GPU as a bar from left to right: key, name and bytes of every part, what is missing beyond the end last."""
    cache = max(0, budget.group_bytes("kv_cache"))
    needed = min(cache, budget.kv.needed_bytes)
    parts: list[tuple[str, str, int]] = []
    for group, name in GROUPS:
        if group == "kv_cache":
            parts += [("kv_asked", "KV cache, asked for", needed), ("kv_spare", "KV cache, spare", cache - needed)]
        else:
            parts.append((group, name, budget.group_bytes(group)))
    parts.append(("unused", "left", budget.gpu_memory_bytes - budget.used_bytes))
    if budget.verdict != "fits":
        parts.append(("missing", "KV cache, missing", budget.kv.needed_bytes - cache))
    return [part for part in parts if part[2] > 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table of lines, as texts.

    `kind` is `group` (the heading of several lines, with their sum), `part` (one of them), `line` (a group of its own),
    `sum`, or `rest` (what is no line: what is needed, what is left). A part does not say again what its heading says.
    """

    kind: str
    name: str
    size: str
    interval: str = ""
    known: str = ""
    working: str = ""
    source: str = ""


def line_rows(budget: MemoryBudget) -> list[Row]:
    """Every line of a budget below the heading of its group, then the total and what is left of the GPU."""
    rows: list[Row] = []
    for group, name, lines in grouped(budget):
        rows += [_line_row("line", lines[0].name, lines[0])] if len(lines) == 1 else _group_rows(name, lines)
        needed = budget.kv.needed_bytes
        if group == "kv_cache" and 0 < needed < budget.group_bytes("kv_cache"):
            rows.append(
                Row(kind="rest", name="  of it needed", size=format_gib(needed), working="for what was asked for")
            )
    rows.append(Row(kind="sum", name="total used", size=format_gib(budget.used_bytes)))
    rows += [Row(kind="rest", name=name, size=format_gib(size), working=text) for name, size, text in rest(budget)]
    rows.append(Row(kind="sum", name=f"memory of the {words.device(budget)}", size=format_gib(budget.gpu_memory_bytes)))
    return rows


def _group_rows(name: str, lines: tuple[Line, ...]) -> list[Row]:
    """A heading with the sum of its lines and what is true of most of them, and the lines below it."""
    size, low, high = (
        sum(getattr(line, field) for line in lines) for field in ("size_bytes", "low_bytes", "high_bytes")
    )
    known = _most([line.provenance for line in lines])
    working, source = _most([line.formula for line in lines]), _most([line.source for line in lines])
    interval = span(low, high, size)
    head = Row(
        kind="group",
        name=name,
        size=format_gib(size),
        interval=interval,
        known=known,
        working=working,
        source=source,
    )
    return [head, *(_line_row("part", f"  {_short_name(line)}", line, said=head) for line in lines)]


def _most(texts: Sequence[str]) -> str:
    """What most lines of a group have; nothing where every line has its own."""
    text = max(texts, key=texts.count)
    return text if texts.count(text) > 1 else ""


def _line_row(kind: str, name: str, line: Line, *, said: Row | None = None) -> Row:
    interval = span(line.low_bytes, line.high_bytes, line.size_bytes)
    return Row(
        kind=kind,
        name=name,
        size=format_gib(line.size_bytes),
        interval=interval,
        known=line.provenance if said is None or line.provenance != said.known else "",
        working=line.formula if said is None or line.formula != said.working else "",
        source=line.source if said is None or line.source != said.source else "",
    )


def _short_name(line: Line) -> str:
    """A line's name below the heading of its group: `weights: mlp` is `mlp` there."""
    return line.name.partition(": ")[2] or line.name


def span(low_bytes: int, high_bytes: int, size_bytes: int) -> str:
    """An interval in the unit that its size is printed in; nothing when there is none."""
    if low_bytes == high_bytes:
        return ""
    magnitude = abs(size_bytes)
    unit, digits = (GIB, 2) if magnitude >= 0.1 * GIB else (MIB, 1) if magnitude >= 0.1 * MIB else (KIB, 1)
    return f"{low_bytes / unit:,.{digits}f} .. {high_bytes / unit:,.{digits}f}"


def rest(budget: MemoryBudget) -> list[tuple[str, int, str]]:
    """What is left of the GPU, as name, bytes and working: with the sum of all lines it makes the GPU's memory.

    One row instead says what is too much where the lines add up to more than the GPU has.
    """
    unused, device = budget.gpu_memory_bytes - budget.used_bytes, words.device(budget)
    if unused < 0:
        return [(f"too much for the {device}", -unused, f"total used - memory of the {device}")]
    utilization = budget.settings.get("gpu_memory_utilization")
    if not isinstance(utilization, float) or not 0 < utilization < 1:
        return [("left unused", unused, f"memory of the {device} - total used")]
    outside = budget.group_bytes("outside_budget")
    kept = max(0, round((1 - utilization) * budget.gpu_memory_bytes) - outside)
    working = f"(1 - {utilization:g}) x {format_gib(budget.gpu_memory_bytes)}"
    working += f", less {format_gib(outside)} outside the budget" if outside else ""
    if unused < kept - _ROUNDING_BYTES:
        working = f"memory of the {device} - total used"
    left = kept if unused > kept + _ROUNDING_BYTES else unused
    rows = [("left to others by utilization", left, working)]
    if unused > left:
        rows.append(("free within the budget", unused - left, "nothing asks for it"))
    return rows
