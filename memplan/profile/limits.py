"""A run that was recorded without a limit, as it would go on a device of some size."""

from __future__ import annotations

from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.domain.timeline import MemoryTimeline
from memplan.profile.events import EventLog
from memplan.profile.load_warmup import warmed_up_on
from memplan.profile.replay import PhaseWork, replay
from memplan.records import replace


def on_device(
    timeline: MemoryTimeline, log: EventLog, settings: AllocatorSettings, *, capacity_bytes: int, outside_bytes: int
) -> MemoryTimeline:
    """Return the timeline with the limit of a device, of which `outside_bytes` are held beside the allocator.

    Where the run fits as it is, nothing changes. Where it fits once the allocator gives back what it caches, its levels
    are those of that. Where it does not fit, the timeline goes on as if there were no limit, and says where it ends.
    """
    timeline = replace(timeline, capacity_bytes=capacity_bytes, outside_bytes=outside_bytes)
    most = max(phase.peak_reserved_bytes for phase in timeline.phases)
    if most <= capacity_bytes - outside_bytes:
        return timeline
    work = {
        number: PhaseWork(total=phase.work, by_module=phase.work_by_module)
        for number, mark in enumerate(log.marks)
        for phase in timeline.phases
        if (phase.phase, phase.iteration) == (mark.phase, mark.iteration)
    }
    limited = replay(
        warmed_up_on(log, capacity_bytes),
        settings,
        capacity_bytes=capacity_bytes,
        outside_bytes=outside_bytes,
        work=work,
    )
    if limited.out_of_memory is not None:
        return replace(timeline, out_of_memory=limited.out_of_memory)
    runs = {(phase.phase, phase.iteration) for phase in timeline.phases}
    shown = {phase for phase, _ in runs}
    return replace(
        timeline,
        phases=tuple(phase for phase in limited.phases if (phase.phase, phase.iteration) in runs),
        samples=tuple(sample for sample in limited.samples if sample.phase in shown),
        warnings=(
            *timeline.warnings,
            f"the allocator had to give back its cache {limited.num_retries} times, which stops the device each time",
        ),
    )
