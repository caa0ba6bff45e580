"""Several profiles side by side in peak and traffic: attention kernels, batches, lengths, ways to run the code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from memplan.domain.timeline import MemoryTimeline, Phase, PhaseMemory, Roof, Work
from memplan.records import dataclass
from memplan.report.profile_words import at_best, filled, flops, merged, parts_of_label, seconds
from memplan.units import format_gib

TRAFFIC_COLUMNS = ("peak", "computes", "moves", "of it attention", "FLOPs a byte", "takes")
_ATTENTION = ("attn", "attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One phase of one of several profiles. `label` is what tells the profile from the others."""

    label: str
    phase: PhaseMemory
    work: Work

    @property
    def attention_moved_bytes(self) -> int:
        """What modules of attention move, with the products before and after the kernel."""
        found = (work.moved_bytes for name, work in self.phase.work_by_module.items() if _is_attention(name))
        return sum(found)


def side_by_side(timelines: Sequence[MemoryTimeline]) -> list[Beside]:
    """Every phase whose work was counted, its profiles one after the other."""
    labels = short_labels(timelines)
    found: dict[Phase, list[Beside]] = {}
    for label, timeline in zip(labels, timelines, strict=True):
        for phase, _ in merged(timeline):
            if phase.work is not None and (phase.work.flops or phase.work.moved_bytes):
                found.setdefault(phase.phase, []).append(Beside(label=label, phase=phase, work=phase.work))
    return [each for group in found.values() for each in group]


def traffic_tables(timelines: Sequence[MemoryTimeline]) -> list[tuple[list[str], list[list[str]]]]:
    """A table for each phase: its head, the phase and what of TRAFFIC_COLUMNS is known, and a row for each profile."""
    tables: dict[Phase, list[list[str]]] = {}
    for each in side_by_side(timelines):
        tables.setdefault(each.phase.phase, []).append(_row(each, timelines[0].roof))
    return [filled((phase, *TRAFFIC_COLUMNS), rows) for phase, rows in tables.items()]


def _row(each: Beside, roof: Roof | None) -> list[str]:
    return [
        each.label,
        format_gib(each.phase.peak.allocated_bytes),
        flops(each.work.flops),
        format_gib(each.work.moved_bytes),
        format_gib(each.attention_moved_bytes) if each.attention_moved_bytes else "-",
        f"{each.work.intensity_flops_per_byte:,.1f}",
        seconds(each.work.seconds) if each.work.seconds else at_best(each.work, roof),
    ]


def short_labels(timelines: Sequence[MemoryTimeline]) -> list[str]:
    """What tells each profile from the others, without what they have in common."""
    parts = [parts_of_label(timeline) for timeline in timelines]
    common = set.intersection(*(set(each) for each in parts)) if len(parts) > 1 else set()
    executions = [str(timeline.settings.get("execution", "eager")) for timeline in timelines]
    differ = len(set(executions)) > 1
    return [
        ", ".join(_without(each, common)) or (executions[number] if differ else f"profile {number + 1}")
        for number, each in enumerate(parts)
    ]


def _without(parts: list[str], common: set[str]) -> Iterator[str]:
    return (part for part in parts if part not in common)


def _is_attention(module: str) -> bool:
    return any(word in part.lower() for part in module.split(".")[-2:] for word in _ATTENTION)
