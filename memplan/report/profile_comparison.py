"""Two profiles beside each other, before and after a change: what became of every phase, and what was changed."""

from __future__ import annotations

from memplan.domain.timeline import Category, MemoryTimeline, PhaseMemory
from memplan.records import dataclass
from memplan.report import profile_words as words
from memplan.report.json_report import dump
from memplan.report.profile_json import phase_object
from memplan.report.words import setting
from memplan.units import format_gib

COLUMNS = ("phase", "peak before", "peak after", "change", "reserved before", "reserved after", "change")
_LEAST_SHARE = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChange:
    """One phase of two profiles; None where only the other one has it."""

    name: str
    before: PhaseMemory | None
    after: PhaseMemory | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileChange:
    """Two profiles, their phases side by side, and what differs in what was asked."""

    before: MemoryTimeline
    after: MemoryTimeline
    phases: tuple[PhaseChange, ...]
    changed: tuple[tuple[str, str, str], ...]

    @property
    def peak_bytes(self) -> int:
        """By how much the fullest moment's allocated bytes rose."""
        return self.after.peak.peak.allocated_bytes - self.before.peak.peak.allocated_bytes

    @property
    def reserved_bytes(self) -> int:
        """By how much the most that was reserved rose."""
        return words.reserved_bytes(self.after) - words.reserved_bytes(self.before)


def compare(before: MemoryTimeline, after: MemoryTimeline) -> ProfileChange:
    """Put two profiles side by side."""
    first = {phase.phase: phase for phase, _ in words.merged(before)}
    second = {phase.phase: phase for phase, _ in words.merged(after)}
    return ProfileChange(
        before=before,
        after=after,
        phases=tuple(
            PhaseChange(name=name, before=first.get(name), after=second.get(name))
            for name in dict.fromkeys([*first, *second])
        ),
        changed=_changed(before, after),
    )


def _changed(before: MemoryTimeline, after: MemoryTimeline) -> tuple[tuple[str, str, str], ...]:
    """What was asked differently: name, before, after."""
    one, two = _facts(before), _facts(after)
    return tuple(
        (name, one.get(name, "-"), two.get(name, "-"))
        for name in dict.fromkeys([*one, *two])
        if one.get(name) != two.get(name)
    )


def _facts(timeline: MemoryTimeline) -> dict[str, str]:
    room = words.room_bytes(timeline)
    return {
        "model": timeline.model_name,
        "device": f"{timeline.device} {timeline.device_name}".strip(),
        "memory for torch": "no limit" if room is None else format_gib(room),
        **{name: setting(value) for name, value in timeline.settings.items()},
        **timeline.versions,
    }


def sentence(change: ProfileChange) -> str:
    """What became of the peak, in one sentence."""
    before, after = change.before.peak.peak.allocated_bytes, change.after.peak.peak.allocated_bytes
    held, then = words.reserved_bytes(change.before), words.reserved_bytes(change.after)
    return (
        f"the peak goes from {format_gib(before)} to {format_gib(after)} ({difference(before, after)}), "
        f"reserved from {format_gib(held)} to {format_gib(then)} ({difference(held, then)})."
    )


def difference(before_bytes: int, after_bytes: int) -> str:
    """A change as people read it: `-1.25 GiB`, or `the same`."""
    change = after_bytes - before_bytes
    if abs(change) < _LEAST_SHARE * max(before_bytes, after_bytes, 1):
        return "the same"
    return f"{'+' if change > 0 else '-'}{format_gib(abs(change))}"


def phase_rows(change: ProfileChange) -> list[list[str]]:
    """One row per phase, in the columns of COLUMNS."""
    rows = []
    for phase in change.phases:
        row = [phase.name]
        for pick in (_allocated, _reserved):
            sizes = [None if each is None else pick(each) for each in (phase.before, phase.after)]
            row += ["-" if size is None else format_gib(size) for size in sizes]
            row.append("-" if sizes[0] is None or sizes[1] is None else difference(sizes[0], sizes[1]))
        rows.append(row)
    return rows


def _allocated(phase: PhaseMemory) -> int:
    return phase.peak.allocated_bytes


def _reserved(phase: PhaseMemory) -> int:
    return phase.peak_reserved_bytes


def category_rows(change: ProfileChange) -> list[list[str]]:
    """What became of every category at the fullest moments: category, before, after, change."""
    before, after = change.before.peak.by_category, change.after.peak.by_category
    names: list[Category] = [name for name in words.CATEGORY_NAMES if before.get(name) or after.get(name)]
    return [
        [
            words.CATEGORY_NAMES[name],
            format_gib(before.get(name, 0)),
            format_gib(after.get(name, 0)),
            difference(before.get(name, 0), after.get(name, 0)),
        ]
        for name in names
    ]


def gone_and_new(change: ProfileChange) -> tuple[list[str], list[str]]:
    """The findings that only the first profile has, and those that only the second has, by their titles."""
    before = {finding.code: finding.title for finding in change.before.findings}
    after = {finding.code: finding.title for finding in change.after.findings}
    return (
        [title for code, title in before.items() if code not in after],
        [title for code, title in after.items() if code not in before],
    )


def comparison_json(change: ProfileChange) -> str:
    """Return the comparison in the contract that scripts rely on (docs/schemas/memplan.profile-comparison.json)."""
    gone, new = gone_and_new(change)
    return dump(
        {
            "schema": "memplan.profile-comparison/1",
            "before": _side(change.before),
            "after": _side(change.after),
            "peak_change_bytes": change.peak_bytes,
            "reserved_change_bytes": change.reserved_bytes,
            "phases": [
                {
                    "phase": phase.name,
                    "before": None if phase.before is None else phase_object(phase.before),
                    "after": None if phase.after is None else phase_object(phase.after),
                }
                for phase in change.phases
            ],
            "changed": [{"name": name, "before": one, "after": two} for name, one, two in change.changed],
            "findings_gone": gone,
            "findings_new": new,
        }
    )


def _side(timeline: MemoryTimeline) -> dict[str, object]:
    return {
        "model": timeline.model_name,
        "device": {"kind": timeline.device, "name": timeline.device_name},
        "peak_allocated_bytes": timeline.peak.peak.allocated_bytes,
        "peak_reserved_bytes": words.reserved_bytes(timeline),
        "ran_out_of_memory": timeline.out_of_memory is not None,
    }
