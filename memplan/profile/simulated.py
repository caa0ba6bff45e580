"""A profile with no GPU: the model's own code on the meta device, its allocations replayed through an allocator."""

from __future__ import annotations

import torch

from memplan.domain.timeline import CATEGORIES, Category, Level, MemoryTimeline, PhaseMemory
from memplan.profile.events import EventLog
from memplan.profile.kernels import meta_answers, simulated_kernels
from memplan.profile.recorder import Recorder
from memplan.profile.request import ProfileRequest
from memplan.profile.runs import run
from memplan.profile.subject import load_subject


def profile_simulated(request: ProfileRequest) -> tuple[MemoryTimeline, EventLog]:
    """Run a request on the meta device."""
    subject = load_subject(request)
    recorder = Recorder("meta", answers=meta_answers())
    with simulated_kernels(request.attention, request.compute_capability):
        run(subject, recorder, request)
    log = recorder.log
    timeline = MemoryTimeline(
        model_name=subject.name,
        architecture=subject.architecture,
        device="simulated",
        device_name="",
        settings=settings_of(request),
        phases=tuple(phase for phase in _sums(log) if phase.phase in request.phases),
        capacity_bytes=request.capacity_bytes,
        versions={"torch": str(torch.__version__)},
    )
    return timeline, log


def settings_of(request: ProfileRequest) -> dict[str, object]:
    """The settings of a request that a page shows."""
    left_out = ("model", "device", "capacity_bytes", "trust_remote_code", "offline", "revision")
    names = (name for name in request.__dataclass_fields__ if name not in left_out)
    settings: dict[str, object] = {name: getattr(request, name) for name in names}
    settings["dtype"] = request.dtype.value if request.dtype else "auto"
    return settings


def _sums(log: EventLog) -> list[PhaseMemory]:
    """Phases by sums of sizes, as long as there is no allocator to replay them in."""
    level = 0
    now = dict.fromkeys(CATEGORIES, 0)
    phases = []
    for mark, start, stop in log.spans():
        before = peak = level
        split: dict[Category, int] = {name: size for name, size in now.items() if size}
        for event in log.order[start:stop]:
            number = abs(event) - 1
            size = log.sizes[number] if event > 0 else -log.sizes[number]
            level += size
            now[log.category(number)] += size
            if level > peak:
                peak = level
                split = {name: each for name, each in now.items() if each}
        levels = [Level(allocated_bytes=each, reserved_bytes=each) for each in (before, peak, level)]
        phases.append(
            PhaseMemory(
                phase=mark.phase,
                before=levels[0],
                peak=levels[1],
                after=levels[2],
                peak_reserved_bytes=peak,
                by_category=split,
                iteration=mark.iteration,
            )
        )
    return phases
