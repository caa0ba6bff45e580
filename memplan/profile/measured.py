"""A request run for real on a GPU: its passes, the allocator's counters and history, what lies outside of torch.

Memory that runs out is a result: the timeline ends in the phase in which it did. Afterwards the device holds nothing
but the process's context, and records no history.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from memplan.domain.timeline import MemoryTimeline, OutOfMemory, Phase, PhaseMemory, Work
from memplan.errors import MemplanError
from memplan.profile.device_memory import CudaMemory, DeviceMemory
from memplan.profile.device_recorder import DeviceRecorder, counted
from memplan.profile.events import EventLog
from memplan.profile.execute import explained, record, settled
from memplan.profile.graph_pool import with_pool
from memplan.profile.pace import Pace
from memplan.profile.packages import installed_versions
from memplan.profile.replay import PhaseWork
from memplan.profile.request import ProfileRequest, settings_of
from memplan.profile.runs import fitting, run
from memplan.profile.snapshot import Snapshot
from memplan.profile.subject import Subject, load_subject
from memplan.records import dataclass, replace

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@dataclass(slots=True, kw_only=True)
class _Outcome:
    """How the passes ended, and what is known of the model."""

    request: ProfileRequest
    architecture: str = ""
    dtype: str = ""
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    ran_out: str | None = None


def measure(
    request: ProfileRequest, memory: DeviceMemory | None = None, pace: Pace | None = None
) -> tuple[MemoryTimeline, EventLog | None]:
    """Run a request on the GPU, or on a device that stands in for one, and return its timeline and trace.

    Raises: MissingExtra without a GPU; UnsupportedModel, SourceError as for the other devices.
    """
    device = memory or CudaMemory(request.allocator)
    recorder = DeviceRecorder(device)
    outcome = _Outcome(request=request)
    device.start()
    try:
        with recorder:
            _pass(recorder, outcome, device, pace)
        outside_bytes = device.outside_bytes()
        snapshot = recorder.snapshot() if recorder.stretches else None
    finally:
        gc.collect()
        device.stop()
    timeline = _timeline(outcome, recorder, snapshot, device)
    timeline = replace(timeline, outside_bytes=outside_bytes)
    return timeline, snapshot.log if snapshot is not None else None


def _pass(recorder: DeviceRecorder, outcome: _Outcome, device: DeviceMemory, pace: Pace | None) -> None:
    """Load and run. What this holds of the device is gone when it returns, whichever way the passes end."""
    request = outcome.request
    try:
        with settled(request), _kernels(request), explained(request):
            recorder.begin("load")
            if request.weights == "dummy" and request.sharing != "fsdp":
                _warm_up(request, device)
            subject = load_subject(request, runs_as="cuda", device=device.device)
            outcome.architecture, outcome.dtype = subject.architecture, str(subject.dtype).removeprefix("torch.")
            device.give_back()
            outcome.request = fitting(request, subject)
            outcome.notes = (*subject.notes, *_run(subject, recorder, outcome.request, pace))
    except (torch.cuda.OutOfMemoryError, MemplanError) as error:
        cause = error if isinstance(error, torch.cuda.OutOfMemoryError) else error.__cause__
        if not isinstance(cause, torch.cuda.OutOfMemoryError):
            raise
        outcome.ran_out = str(cause)
    except KeyboardInterrupt:
        if len(recorder.stretches) < 2:
            raise
        outcome.interrupted = True
        outcome.notes = (f"interrupted in {recorder.stretches[-1].phase}: later phases are missing",)


def _warm_up(request: ProfileRequest, device: DeviceMemory) -> None:
    """Take all bytes of the weights at once and give them back, as a load of files does (see `load_warmup`)."""
    shape = load_subject(request, runs_as="cuda", device="meta")
    size_bytes = sum(tensor.untyped_storage().nbytes() for _, tensor in shape.weights())
    size_bytes //= request.num_ranks if request.sharing == "tp" else 1
    torch.empty(size_bytes, dtype=torch.uint8, device=device.device)


def _run(subject: Subject, recorder: DeviceRecorder, request: ProfileRequest, pace: Pace | None) -> tuple[str, ...]:
    return run(subject, cast("Any", recorder), request, pace)


@contextlib.contextmanager
def _kernels(request: ProfileRequest) -> Iterator[None]:
    """Attention by the kernel that was asked for, and by no other."""
    backend = _BACKENDS.get(request.attention)
    with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
        yield


def _timeline(
    outcome: _Outcome, recorder: DeviceRecorder, snapshot: Snapshot | None, device: DeviceMemory
) -> MemoryTimeline:
    request = outcome.request
    phases = counted(snapshot.replay.phases if snapshot else (), recorder.stretches)
    shown = tuple(each for each in phases if each.phase in request.phases and each.iteration >= 0)
    return MemoryTimeline(
        model_name=request.model,
        architecture=outcome.architecture,
        device="cuda",
        device_name=device.name,
        settings={**settings_of(request), "phases": request.phases, "dtype": outcome.dtype},
        phases=_with_work(shown, recorder, request) if outcome.ran_out is None else shown or phases[-1:],
        samples=tuple(each for each in snapshot.replay.samples if each.phase in request.phases) if snapshot else (),
        capacity_bytes=device.capacity_bytes,
        out_of_memory=_out_of_memory(outcome, recorder, snapshot, device),
        capture=with_pool(recorder.graph, phases),
        interrupted=outcome.interrupted,
        warnings=(*outcome.notes, *(snapshot.warnings if snapshot else ())),
        versions=installed_versions(),
    )


def _out_of_memory(
    outcome: _Outcome, recorder: DeviceRecorder, snapshot: Snapshot | None, device: DeviceMemory
) -> OutOfMemory | None:
    """Where memory ran out, by the history; by the counters where that is silent."""
    if outcome.ran_out is None:
        return None
    phase: Phase = recorder.stretches[-1].phase if recorder.stretches else "load"
    if snapshot is not None and snapshot.out_of_memory is not None:
        found = replace(snapshot.out_of_memory, phase=phase)
        return replace(found, capacity_bytes=device.capacity_bytes or found.capacity_bytes)
    level = recorder.stretches[-1].peak if recorder.stretches else None
    return OutOfMemory(
        phase=phase,
        wanted_bytes=0,
        free_bytes=0,
        capacity_bytes=device.capacity_bytes or 0,
        allocated_bytes=level.allocated_bytes if level else 0,
        reserved_bytes=level.reserved_bytes if level else 0,
    )


def _with_work(
    phases: tuple[PhaseMemory, ...], recorder: DeviceRecorder, request: ProfileRequest
) -> tuple[PhaseMemory, ...]:
    """Add what each phase computes and moves, counted on meta tensors, and the seconds that it really took."""
    seconds = {(each.phase, each.iteration): each.seconds for each in recorder.stretches}
    alone = replace(request, device="simulated", iterations=1, warmup=0, sharing="none", num_ranks=1, execution="eager")
    try:
        counted_on_meta = record(alone)
    except MemplanError:
        return phases
    marks = counted_on_meta.log.marks
    work: dict[Phase, PhaseWork] = {marks[number].phase: each for number, each in counted_on_meta.work.items()}
    found = []
    for phase in phases:
        counts = work.get(phase.phase)
        warms_up = request.execution == "graph" and phase.phase == "decode" and phase.iteration == 0
        if counts is None or counts.total is None or phase.phase == "load" or warms_up:
            found.append(phase)
            continue
        total = counts.total
        timed = Work(
            flops=total.flops, moved_bytes=total.moved_bytes, seconds=seconds.get((phase.phase, phase.iteration))
        )
        found.append(replace(phase, work=timed, work_by_module=counts.by_module))
    return tuple(found)
