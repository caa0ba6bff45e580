"""Profiles as JSON, in the contract that scripts rely on (docs/schemas/memplan.profile.json).

`memplan.report.profile_reading` reads it back; what is written here and what is read there are the same keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.timeline import (
    Capture,
    Compared,
    Finding,
    Level,
    LiveTensor,
    MemoryTimeline,
    ModuleShare,
    OutOfMemory,
    PhaseMemory,
    Roof,
    Sample,
    Work,
)
from memplan.report.json_report import dump
from memplan.report.profile_traffic import Beside, side_by_side

SCHEMA = "memplan.profile/1"


def profiles_json(timelines: Sequence[MemoryTimeline]) -> str:
    """Return one object for one profile, a list under a schema of its own for several."""
    if len(timelines) == 1:
        return dump(profile_object(timelines[0]))
    return dump(
        {
            "schema": "memplan.profiles/1",
            "side_by_side": [_beside(each) for each in side_by_side(timelines)],
            "profiles": [profile_object(timeline) for timeline in timelines],
        }
    )


def profile_object(timeline: MemoryTimeline) -> dict[str, object]:
    """Return a profile as plain values; all sizes are whole bytes of one rank."""
    peak = timeline.peak
    return {
        "schema": SCHEMA,
        "model": {"name": timeline.model_name, "architecture": timeline.architecture},
        "device": {
            "kind": timeline.device,
            "name": timeline.device_name,
            "capacity_bytes": timeline.capacity_bytes,
            "outside_bytes": timeline.outside_bytes,
            "roof": None if timeline.roof is None else _roof(timeline.roof),
        },
        "rank": timeline.rank,
        "num_ranks": timeline.num_ranks,
        "settings": timeline.settings,
        "peak": {
            "phase": peak.phase,
            "allocated_bytes": peak.peak.allocated_bytes,
            "reserved_bytes": max(phase.peak_reserved_bytes for phase in timeline.phases),
            "inactive_split_bytes": peak.peak.inactive_split_bytes,
            "by_category": peak.by_category,
        },
        "phases": [phase_object(phase) for phase in timeline.phases],
        "at_peak": [_share(share) for share in timeline.at_peak],
        "samples": [_sample(sample) for sample in timeline.samples],
        "out_of_memory": None if timeline.out_of_memory is None else _out_of_memory(timeline.out_of_memory),
        "capture": None if timeline.capture is None else _capture(timeline.capture),
        "interrupted": timeline.interrupted,
        "findings": [finding_object(finding) for finding in timeline.findings],
        "compared": [_compared(one) for one in timeline.compared],
        "warnings": list(timeline.warnings),
        "versions": timeline.versions,
    }


def _beside(each: Beside) -> dict[str, object]:
    return {
        "profile": each.label,
        "phase": each.phase.phase,
        "peak_allocated_bytes": each.phase.peak.allocated_bytes,
        "peak_reserved_bytes": each.phase.peak_reserved_bytes,
        "flops": each.work.flops,
        "moved_bytes": each.work.moved_bytes,
        "attention_moved_bytes": each.attention_moved_bytes,
        "flops_per_byte": each.work.intensity_flops_per_byte,
        "seconds": each.work.seconds,
    }


def _capture(capture: Capture) -> dict[str, object]:
    return {
        "pool_bytes": capture.pool_bytes,
        "live_bytes": capture.live_bytes,
        "breaks": [
            {
                "obstacle": each.obstacle,
                "operator": each.operator,
                "module": each.module,
                "where": each.where,
                "count": each.count,
            }
            for each in capture.breaks
        ],
    }


def phase_object(phase: PhaseMemory) -> dict[str, object]:
    """Return one phase as plain values."""
    return {
        "phase": phase.phase,
        "iteration": phase.iteration,
        "before": _level(phase.before),
        "peak": _level(phase.peak),
        "after": _level(phase.after),
        "peak_reserved_bytes": phase.peak_reserved_bytes,
        "left_bytes": phase.left_bytes,
        "num_allocations": phase.num_allocations,
        "by_category": phase.by_category,
        "by_module": phase.by_module,
        "largest": [_tensor(tensor) for tensor in phase.largest],
        "work": None if phase.work is None else _work(phase.work),
        "work_by_module": {name: _work(work) for name, work in phase.work_by_module.items()},
    }


def finding_object(finding: Finding) -> dict[str, object]:
    """Return a diagnosis as plain values."""
    return {
        "code": finding.code,
        "severity": finding.severity,
        "title": finding.title,
        "evidence": finding.evidence,
        "mend": finding.mend,
        "saves_bytes": finding.saves_bytes,
    }


def _level(level: Level) -> dict[str, object]:
    return {
        "allocated_bytes": level.allocated_bytes,
        "reserved_bytes": level.reserved_bytes,
        "inactive_split_bytes": level.inactive_split_bytes,
        "requested_bytes": level.requested_bytes,
    }


def _tensor(tensor: LiveTensor) -> dict[str, object]:
    return {
        "bytes": tensor.size_bytes,
        "category": tensor.category,
        "module": tensor.module,
        "operator": tensor.operator,
        "where": tensor.where,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "count": tensor.count,
    }


def _work(work: Work) -> dict[str, object]:
    return {"flops": work.flops, "moved_bytes": work.moved_bytes, "seconds": work.seconds}


def _roof(roof: Roof) -> dict[str, object]:
    return {"flops_per_s": roof.flops_per_s, "moved_bytes_per_s": roof.moved_bytes_per_s}


def _share(share: ModuleShare) -> dict[str, object]:
    return {
        "category": share.category,
        "module": share.module,
        "operator": share.operator,
        "bytes": share.size_bytes,
        "count": share.count,
    }


def _sample(sample: Sample) -> dict[str, object]:
    return {
        "step": sample.step,
        "phase": sample.phase,
        "allocated_bytes": sample.allocated_bytes,
        "reserved_bytes": sample.reserved_bytes,
        "by_category": sample.by_category,
    }


def _out_of_memory(found: OutOfMemory) -> dict[str, object]:
    return {
        "phase": found.phase,
        "wanted_bytes": found.wanted_bytes,
        "free_bytes": found.free_bytes,
        "capacity_bytes": found.capacity_bytes,
        "allocated_bytes": found.allocated_bytes,
        "reserved_bytes": found.reserved_bytes,
        "tensor": None if found.tensor is None else _tensor(found.tensor),
    }


def _compared(one: Compared) -> dict[str, object]:
    return {
        "phase": one.phase,
        "term": one.term,
        "measured_bytes": one.measured_bytes,
        "estimated_bytes": one.estimated_bytes,
        "low_bytes": one.low_bytes,
        "high_bytes": one.high_bytes,
    }
