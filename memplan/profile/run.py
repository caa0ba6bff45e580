"""One profile, from what was asked to a timeline: run the model's phases, replay what was recorded.

Torch is imported when a profile runs, never when this module is.
"""

from __future__ import annotations

from functools import partial

from memplan.budget.caching_allocator.settings import AllocatorSettings, parse_settings
from memplan.domain.timeline import MemoryTimeline
from memplan.profile.events import EventLog
from memplan.profile.graph_pool import with_pool
from memplan.profile.load_warmup import warmed_up_on
from memplan.profile.pace import Pace
from memplan.profile.packages import installed_versions, require_packages
from memplan.profile.replay import replay
from memplan.profile.request import ProfileRequest, check_request, settings_of


def profile_model(request: ProfileRequest, pace: Pace | None = None) -> tuple[MemoryTimeline, EventLog | None]:
    """Run a request and return its timeline, and the trace of allocations that it was made from.

    `pace` is told how far it is. An interruption of the run keeps what was recorded until then.

    Raises: MissingExtra without torch or transformers; UsageError for what cannot be run; SourceError,
    UnsupportedModel for a model that cannot be had or built; KeyboardInterrupt before anything was measured.
    """
    check_request(request)
    settings = _allocator(request)
    require_packages()
    if request.device == "cuda":
        from memplan.profile.measured import measure

        return measure(request, pace=pace)
    from memplan.profile.execute import record

    recorded = record(request, pace=pace)
    if pace is not None:
        pace.replay()
    log = warmed_up_on(recorded.log, request.capacity_bytes)
    replay_all = partial(replay, log, settings, capacity_bytes=request.capacity_bytes, work=recorded.work)
    interrupted = recorded.interrupted
    try:
        replayed = replay_all()
    except KeyboardInterrupt:  # what was recorded is kept; a second interruption ends it
        replayed, interrupted = replay_all(), True
    if interrupted and not any(phase.phase in recorded.phases for phase in replayed.phases):
        raise KeyboardInterrupt
    timeline = MemoryTimeline(
        model_name=request.model,
        architecture=recorded.architecture,
        device=request.device,
        device_name=recorded.device_name,
        settings={**settings_of(request), "phases": recorded.phases, "dtype": recorded.dtype},
        phases=tuple(each for each in replayed.phases if each.phase in recorded.phases and each.iteration >= 0),
        samples=tuple(sample for sample in replayed.samples if sample.phase in recorded.phases),
        num_ranks=request.num_ranks,
        capacity_bytes=request.capacity_bytes,
        out_of_memory=replayed.out_of_memory,
        capture=with_pool(recorded.capture, replayed.phases),
        interrupted=interrupted,
        warnings=recorded.notes,
        versions=installed_versions(),
    )
    return timeline, log


def _allocator(request: ProfileRequest) -> AllocatorSettings | None:
    """The allocator to replay in; None for the CPU, which caches nothing."""
    return None if request.device == "cpu" else parse_settings(request.allocator)
