"""A memory snapshot that PyTorch wrote, read as a trace and as the timeline of what its process held.

A snapshot has every segment and block at one moment and, where `_record_memory_history` was on, the requests before it,
perhaps cut at the front. What was freed in it without being made in it, and what is alive at its end without being made
in it, was there before it began. Reserved memory is what the device gave and got back, not a simulation.

How large a block was that is gone by the end follows from its neighbours.

Source: torch/csrc/cuda/memory_snapshot.cpp and torch/cuda/memory.py, PyTorch 2.1 to 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.budget.caching_allocator.settings import AllocatorSettings, parse_settings
from memplan.domain.timeline import MemoryTimeline, OutOfMemory
from memplan.errors import CorruptFile, UsageError
from memplan.profile.events import EventLog
from memplan.profile.plain_pickle import read_plain
from memplan.profile.replay import Replay, summarize
from memplan.profile.snapshot_history import History
from memplan.profile.snapshot_levels import measured
from memplan.records import dataclass
from memplan.units import format_gib

_HINT = "give a file that torch.cuda.memory._dump_snapshot wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One device of a snapshot: its requests as a trace, and what they held as the device had it.

    `log` can be replayed under other settings than `settings`, which are those that its process ran with.
    """

    device: int
    log: EventLog
    replay: Replay
    settings: AllocatorSettings
    settings_text: str
    out_of_memory: OutOfMemory | None = None
    warnings: tuple[str, ...] = ()


def read_snapshot(path: Path, *, device: int | None = None) -> Snapshot:
    """Read a snapshot's `device`; without a number, the one that holds most.

    Raises: SourceNotFound without such a file; CorruptFile for one that is no snapshot; UsageError for a device that
    it does not have.
    """
    return snapshot_of(read_plain(path), device=device)


def snapshot_of(data: object, *, device: int | None = None) -> Snapshot:
    """The same for what the file holds. Raises: CorruptFile, UsageError."""
    number, text, history, warnings = _read(data, device)
    walk, out_of_memory = measured(history)
    return Snapshot(
        device=number,
        log=history.log,
        replay=summarize(history.log, walk),
        settings=history.settings,
        settings_text=text,
        out_of_memory=out_of_memory,
        warnings=(*warnings, *_gaps(history)),
    )


def history_of(data: object, *, device: int | None = None) -> History:
    """The history alone, for what compares it step by step. Raises: CorruptFile, UsageError."""
    return _read(data, device)[2]


def devices_of(data: object) -> list[int]:
    """The devices that a snapshot has anything of. Raises: CorruptFile."""
    whole, traces = _parts(data)
    return sorted(_held(whole["segments"], traces))


def _parts(data: object) -> tuple[Mapping[str, Any], list[Any]]:
    """A snapshot as a dictionary, and its histories by device."""
    if isinstance(data, list):  # torch.cuda.memory_snapshot() is the segments alone
        data = {"segments": data}
    if not isinstance(data, Mapping) or not isinstance(data.get("segments"), list):
        raise CorruptFile("not a memory snapshot", hint=_HINT)
    traces = data.get("device_traces", [])
    if not isinstance(traces, list):
        raise CorruptFile("not a memory snapshot: `device_traces` is no list", hint=_HINT)
    return data, traces


def _read(whole: object, device: int | None) -> tuple[int, str, History, tuple[str, ...]]:
    """The device that is read, its settings as written, its history, and what was not understood."""
    data, traces = _parts(whole)
    number = _device(_held(data["segments"], traces), device)
    text, settings, warnings = _settings(data)
    history = History(settings)
    for segment in data["segments"]:
        if _mapping(segment, "a segment").get("device", 0) == number:
            history.add_segment(segment)
    annotations = data.get("external_annotations", [])
    for annotation in annotations if isinstance(annotations, list) else ():
        history.add_annotation(annotation)
    history.read_trace(traces[number] if number < len(traces) else [])
    return number, text, history, warnings


def timeline_of(snapshot: Snapshot, *, name: str) -> MemoryTimeline:
    """A snapshot as a profile. Where the program did not name its phases, all of it is one."""
    return MemoryTimeline(
        model_name=name,
        architecture="",
        device="cuda",
        device_name=f"GPU {snapshot.device}",
        settings={"allocator": snapshot.settings_text},
        phases=snapshot.replay.phases,
        samples=snapshot.replay.samples,
        out_of_memory=snapshot.out_of_memory,
        warnings=snapshot.warnings,
    )


def _held(segments: list[Any], traces: list[Any]) -> dict[int, tuple[int, int]]:
    """For each device that has anything, the bytes that it holds and the length of its history."""
    held: dict[int, tuple[int, int]] = {}
    for number, trace in enumerate(traces):
        if not isinstance(trace, list):
            raise CorruptFile(f"not a memory snapshot: the history of device {number} is no list", hint=_HINT)
        if trace:
            held[number] = (0, len(trace))
    for segment in segments:
        entry = _mapping(segment, "a segment")
        number, size = entry.get("device", 0), entry.get("total_size", 0)
        if not isinstance(number, int) or not isinstance(size, int):
            raise CorruptFile("not a memory snapshot: a segment without a size", hint=_HINT)
        if number < 0:
            raise CorruptFile(f"not a memory snapshot: a segment of device {number}", hint=_HINT)
        bytes_held, length = held.get(number, (0, 0))
        held[number] = (bytes_held + size, length)
    return held


def _device(held: dict[int, tuple[int, int]], wanted: int | None) -> int:
    """The device to read: the one that was asked for, or else the one with the most memory and the longest history."""
    if wanted is not None and wanted not in held:
        have = ", ".join(str(number) for number in sorted(held)) or "none"
        raise UsageError(f"no device {wanted} in the snapshot", hint=f"it has {have}")
    if not held:
        raise CorruptFile("an empty snapshot: no segment and no history", hint=_HINT)
    return wanted if wanted is not None else max(held, key=lambda number: held[number])


def _gaps(history: History) -> tuple[str, ...]:
    """What the snapshot cannot tell."""
    if not history.entries:
        return ("the snapshot has no history: record it with torch.cuda.memory._record_memory_history() first",)
    unknown = sum(made.size_bytes for made in history.before if not made.origin.label.where)
    if unknown:
        return (f"{format_gib(unknown)} were allocated before the history began, by nobody knows whom",)
    return ()


def _settings(data: Mapping[str, Any]) -> tuple[str, AllocatorSettings, tuple[str, ...]]:
    """What the process set, as text and as it is read; newer snapshots have it."""
    written = data.get("allocator_settings")
    if not isinstance(written, Mapping):
        return "", AllocatorSettings(), ()
    text = written.get("PYTORCH_CUDA_ALLOC_CONF") or written.get("PYTORCH_ALLOC_CONF") or ""
    text = text[:1000] if isinstance(text, str) else ""
    try:
        return text, parse_settings(text), ()
    except UsageError as error:
        return text, AllocatorSettings(), (f"the snapshot's allocator settings were not understood: {error.message}",)


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CorruptFile(f"not a memory snapshot: {what} is no dictionary", hint=_HINT)
    return value
