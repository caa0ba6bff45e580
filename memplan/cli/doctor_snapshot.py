"""`memplan doctor` on a snapshot of PyTorch's memory: read by the restricted reader, with its own findings."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor.secrets import shown
from memplan.doctor.telling import size
from memplan.domain.diagnosis import Diagnosis, DoctorReport, Evidence, Mend, Recognised, Severity
from memplan.domain.timeline import Finding, MemoryTimeline
from memplan.errors import CorruptFile
from memplan.units import GIB

_LIMIT_BYTES = GIB
_SEVERITY: dict[str, Severity] = {"error": "error", "warning": "warning", "note": "note"}


def snapshot_report(pieces: Iterator[bytes]) -> DoctorReport:
    """Return what a snapshot shows. Raises: CorruptFile for one that is too large, damaged or no snapshot."""
    from memplan.profile.findings import find
    from memplan.profile.plain_pickle import load_plain
    from memplan.profile.snapshot import snapshot_of, timeline_of

    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > _LIMIT_BYTES:
            raise CorruptFile("too large for a snapshot: more than 1 GiB", hint="record fewer entries")
    snapshot = snapshot_of(load_plain(bytes(data)))
    timeline = timeline_of(snapshot, name="snapshot")
    findings = find(timeline, snapshot.log, snapshot.settings) if timeline.phases else ()
    diagnoses = [_diagnosis(each) for each in findings]
    return DoctorReport(
        recognised=Recognised(kind="snapshot", name="a memory snapshot of PyTorch", size_bytes=len(data)),
        diagnoses=tuple(diagnoses) or (_fine(timeline),),
        notes=tuple(shown(each) for each in snapshot.warnings),
    )


def _diagnosis(finding: Finding) -> Diagnosis:
    mends: tuple[Mend, ...] = ()
    if finding.mend:
        mends = (Mend(change=shown(finding.mend), risk="low", basis="log", effect_bytes=finding.saves_bytes),)
    return Diagnosis(
        cause=finding.code.replace("-", "_"),
        severity=_SEVERITY[finding.severity],
        sentence=shown(finding.title),
        because="",
        evidence=(Evidence(term="found", value=shown(finding.evidence, limit=600), unit="text"),),
        mends=mends,
    )


def _fine(timeline: MemoryTimeline) -> Diagnosis:
    """A snapshot with nothing to complain of, and what it held at most."""
    held = f": at most {size(timeline.peak.peak_reserved_bytes)} were reserved" if timeline.phases else ""
    return Diagnosis(cause="starts", severity="fine", sentence=f"nothing is the matter in the snapshot{held}")
