"""Profiles that are read from files: JSON that memplan wrote, and snapshots that PyTorch wrote."""

from __future__ import annotations

import sys
from pathlib import Path

from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.cli.options import Given
from memplan.domain.timeline import MemoryTimeline
from memplan.errors import SourceNotFound, UsageError
from memplan.profile.events import EventLog
from memplan.records import replace

_MAX_BYTES = 200_000_000


def read_profile(path: Path) -> MemoryTimeline:
    """Return the profile of a file that `memplan profile --json` wrote. Raises: UsageError when it is none."""
    from memplan.introspect.jsonfile import read_json_object
    from memplan.report.profile_reading import timeline_of

    try:
        content = read_json_object(path, limit_bytes=_MAX_BYTES)
    except SourceNotFound:
        raise UsageError(f"no such file: {path}", hint="write it with memplan profile --json --output FILE") from None
    return timeline_of(content, str(path))


def profile_snapshot(given: Given) -> MemoryTimeline:
    """Return what a memory snapshot of PyTorch says of the run that left it, with what is the matter with it.

    Raises: UsageError for a file that is missing; CorruptFile for one that is no snapshot.
    """
    from memplan.profile.at_peak import shares_at_peak
    from memplan.profile.findings import find
    from memplan.profile.snapshot import read_snapshot, timeline_of

    path: Path = given["snapshot"]
    if not path.is_file():
        raise UsageError(f"no such file: {path}", hint="torch.cuda.memory._dump_snapshot writes one")
    snapshot = read_snapshot(path)
    timeline = timeline_of(snapshot, name=path.name)
    if not timeline.phases:
        raise UsageError(f"nothing was allocated in {path}", hint="record it while the program runs")
    timeline = replace(timeline, at_peak=shares_at_peak(snapshot.log, (phase.phase for phase in timeline.phases)))
    write_memory_viz(given, snapshot.log, snapshot.settings)
    return replace(timeline, findings=find(timeline, snapshot.log, snapshot.settings))


def write_memory_viz(given: Given, log: EventLog, settings: AllocatorSettings) -> None:
    """Write a trace where --memory-viz says, for pytorch.org/memory_viz to draw. Raises: UsageError."""
    path: Path | None = given.get("memory_viz")
    if path is None:
        return
    from memplan.profile.memviz import snapshot_from, write_memviz

    write_memviz(path, snapshot_from(log, settings))
    print(f"wrote {path}", file=sys.stderr)
