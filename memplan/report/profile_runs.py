"""How a model's code was run, in words and rows: its first run beside those after it, and what a CUDA graph holds."""

from __future__ import annotations

from memplan.domain.timeline import Capture, CaptureBreak, MemoryTimeline, PhaseMemory
from memplan.report.profile_words import seconds
from memplan.units import format_gib

RUN_COLUMNS = ("phase", "first peak", "peak after it", "first reserved", "reserved after it", "takes first", "after it")
BREAK_COLUMNS = ("obstacle", "what makes it, in a step", "where")
OBSTACLES = {
    "host-read": "host reads a value",
    "host-copy": "value from the host",
    "data-shape": "shape made of values",
    "growing-shape": "shape changes",
}


def run_rows(timeline: MemoryTimeline) -> list[list[str]]:
    """Every phase that ran again, its first run beside the fullest of those after it, in the columns of RUN_COLUMNS.

    Nothing of a model whose code is run as it is written: its first run is as the others.
    """
    if timeline.settings.get("execution", "eager") == "eager":
        return []
    by_phase: dict[str, list[PhaseMemory]] = {}
    for phase in timeline.phases:
        by_phase.setdefault(phase.phase, []).append(phase)
    return [_run_row(name, runs) for name, runs in by_phase.items() if len(runs) > 1]


def _run_row(name: str, runs: list[PhaseMemory]) -> list[str]:
    first, later = runs[0], runs[1:]
    times = [run.work.seconds for run in later if run.work is not None and run.work.seconds]
    first_s = first.work.seconds if first.work is not None else None
    return [
        name,
        format_gib(first.peak.allocated_bytes),
        format_gib(max(run.peak.allocated_bytes for run in later)),
        format_gib(first.peak_reserved_bytes),
        format_gib(max(run.peak_reserved_bytes for run in later)),
        seconds(first_s) if first_s else "-",
        seconds(min(times)) if times else "-",
    ]


def capture_sentence(capture: Capture) -> str:
    """Whether a decoding step can be captured, and what that costs."""
    if capture.breaks:
        return "a decoding step cannot be captured in a CUDA graph as it is"
    if capture.pool_bytes is None:
        return "a decoding step can be captured in a CUDA graph"
    return (
        f"a decoding step is captured in a CUDA graph, which keeps {format_gib(capture.pool_bytes)} in a pool of its "
        f"own: {format_gib(capture.live_bytes or 0)} are held between replays, the rest only during one"
    )


def break_rows(capture: Capture) -> list[list[str]]:
    """What stands in a graph's way, in the columns of BREAK_COLUMNS."""
    return [_break_row(each) for each in capture.breaks]


def _break_row(each: CaptureBreak) -> list[str]:
    who = f"{each.operator} in {each.module}" if each.module else each.operator
    return [OBSTACLES[each.obstacle], f"{each.count:,} x {who}" if each.count > 1 else who, each.where or "-"]
