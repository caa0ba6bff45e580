"""A trace replayed through the simulated allocator: what each phase would hold of a GPU, and what lived at its peak.

The trace is walked twice. The first walk runs the allocator and notes each phase's levels; by then the step of every
peak is known, and the second walk counts what was alive at those steps and at the points of the curve.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate

from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.domain.timeline import Category, OutOfMemory, PhaseMemory, Sample, Work
from memplan.profile.alive import Contents, Patterns, Survey
from memplan.profile.events import EventLog
from memplan.profile.passages import Passage, Walk, check_order, run_allocator
from memplan.records import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a trace would do to a GPU's memory.

    `num_retries` counts how often the cache had to be given back before a request was served.
    """

    phases: tuple[PhaseMemory, ...]
    samples: tuple[Sample, ...]
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    num_retries: int = 0
    out_of_memory: OutOfMemory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseWork:
    """What was counted of a phase's work while it was recorded, to be put beside its memory."""

    total: Work | None = None
    by_module: dict[str, Work] = field(default_factory=dict)


def replay(
    log: EventLog,
    settings: AllocatorSettings | None,
    *,
    capacity_bytes: int | None = None,
    outside_bytes: int = 0,
    work: Mapping[int, PhaseWork] | None = None,
    module_depth: int = 3,
    num_largest: int = 10,
    num_samples: int = 1200,
    shares_pools: bool = True,
) -> Replay:
    """Return what a trace would hold of a device with `capacity_bytes` (None: no limit), phase by phase.

    `settings` None replays it on a device that caches nothing. `work` is by index of `log.marks`. Modules are cut after
    `module_depth` names; `num_samples` bounds the curve, which keeps every phase's peak, and 0 leaves it out.
    `shares_pools` is whether all captured graphs share one private pool, as engines have it, or have one each.
    A phase that runs out of memory is the last one.

    Raises: CorruptFile for a trace that frees what is not live.
    """
    check_order(log)
    allocator = make_allocator(settings, capacity_bytes=capacity_bytes, outside_bytes=outside_bytes)
    walk = run_allocator(log, allocator, shares_pools=shares_pools)
    return summarize(
        log,
        walk,
        work=work or {},
        module_depth=module_depth,
        num_largest=num_largest,
        num_samples=num_samples,
        has_cache=settings is not None,
        num_retries=allocator.num_retries,
    )


def summarize(
    log: EventLog,
    walk: Walk,
    *,
    work: Mapping[int, PhaseWork] | None = None,
    module_depth: int = 3,
    num_largest: int = 10,
    num_samples: int = 1200,
    has_cache: bool = True,
    num_retries: int = 0,
) -> Replay:
    """The second walk: what was alive when, put beside the levels that the first one noted.

    A trace of a real device can be summarized as well: its first walk only reads what the device did. Without a cache
    what is reserved is what is allocated.
    """
    curve = _curve(log, walk)
    at_peak = [curve.index(passage.peak.allocated_bytes, passage.start) for passage in walk.passages]
    shown = set(_thinned(curve, walk.passages, at_peak, num_samples))
    survey = Survey(log, walk.held)
    contents: dict[int, Contents] = {}
    left: dict[int, int] = {}
    points: list[Point] = []
    peaking, ending = _grouped(at_peak), _grouped([passage.stop for passage in walk.passages])
    for step in sorted({*shown, *peaking, *ending}):
        survey.go_to(step)
        if step in shown:
            points.append(Point(step=step, num_made=survey.num_made, by_category=survey.by_category()))
        for number in peaking.get(step, ()):
            contents[number] = survey.contents(module_depth=module_depth, num_largest=num_largest)
        for number in ending.get(step, ()):
            left[number] = survey.left_bytes(walk.passages[number].first)
    return Replay(
        phases=tuple(
            _phase(passage, contents[number], left[number], (work or {}).get(number))
            for number, passage in enumerate(walk.passages)
        ),
        samples=_samples(walk, curve, points, has_cache=has_cache),
        peak_allocated_bytes=max((passage.peak.allocated_bytes for passage in walk.passages), default=0),
        peak_reserved_bytes=max((passage.peak_reserved_bytes for passage in walk.passages), default=0),
        num_retries=num_retries,
        out_of_memory=_out_of_memory(log, walk),
    )


def timeline_from(
    log: EventLog,
    settings: AllocatorSettings | None,
    *,
    capacity_bytes: int | None = None,
    outside_bytes: int = 0,
    work: Mapping[int, PhaseWork] | None = None,
) -> tuple[PhaseMemory, ...]:
    """The phases alone, of a replay with everything else as usual."""
    return replay(
        log, settings, capacity_bytes=capacity_bytes, outside_bytes=outside_bytes, work=work, num_samples=0
    ).phases


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What the second walk saw at a step that the curve shows."""

    step: int
    num_made: int
    by_category: dict[Category, int]


def _grouped(steps: list[int]) -> dict[int, list[int]]:
    """The phases, by number, that share each step."""
    groups: dict[int, list[int]] = {}
    for number, step in enumerate(steps):
        groups.setdefault(step, []).append(number)
    return groups


def _curve(log: EventLog, walk: Walk) -> list[int]:
    """The allocated bytes after each number of events, from 0 events on."""
    held = walk.held
    changes = (held[event - 1] if event > 0 else -held[~event] for event in log.order[: walk.stop])
    return list(accumulate(changes, initial=0))


def _thinned(curve: list[int], passages: list[Passage], at_peak: list[int], most: int) -> list[int]:
    """Steps of the curve: each phase's ends and peak, and of equal stretches between them the highest and the last.

    Half of the points are shared out evenly, so that a short phase beside a long one still has a shape.
    """
    if most <= 0 or not passages:
        return []
    steps = [step for passage in passages for step in (passage.start, passage.stop)] + at_peak
    events = max(1, sum(passage.stop - passage.start for passage in passages))
    room = max(0, most - len(steps)) // 2
    for passage in passages:
        length = passage.stop - passage.start
        stretches = int(room * (length / events + 1 / len(passages)) / 2)
        if not length or not stretches:
            continue
        width = -(-length // stretches)
        for start in range(passage.start, passage.stop, width):
            stop = min(start + width, passage.stop)
            highest = max(curve[start + 1 : stop + 1])
            steps += [curve.index(highest, start + 1), stop]
    return steps


def _samples(walk: Walk, curve: list[int], points: list[Point], *, has_cache: bool) -> tuple[Sample, ...]:
    starts = [passage.start for passage in walk.passages]
    changed_at = [number for number, _ in walk.reserved]
    samples = []
    for point in points:
        change = bisect_left(changed_at, point.num_made) - 1
        reserved = walk.reserved[change][1] if change >= 0 else 0
        # A step between two phases is the end of the first: the second has not done anything yet.
        passage = walk.passages[max(bisect_left(starts, point.step) - 1, 0)]
        samples.append(
            Sample(
                step=point.step,
                phase=passage.mark.phase,
                allocated_bytes=curve[point.step],
                reserved_bytes=reserved if has_cache else curve[point.step],
                by_category=point.by_category,
            )
        )
    return tuple(samples)


def _phase(passage: Passage, contents: Contents, left_bytes: int, work: PhaseWork | None) -> PhaseMemory:
    return PhaseMemory(
        phase=passage.mark.phase,
        before=passage.before,
        peak=passage.peak,
        after=passage.after,
        peak_reserved_bytes=passage.peak_reserved_bytes,
        by_category=contents.by_category,
        by_module=contents.by_module,
        largest=contents.largest,
        work=work.total if work else None,
        work_by_module=work.by_module if work else {},
        iteration=passage.mark.iteration,
        num_allocations=passage.last - passage.first,
        left_bytes=left_bytes,
    )


def _out_of_memory(log: EventLog, walk: Walk) -> OutOfMemory | None:
    if walk.full is None or not walk.passages:
        return None
    number = len(walk.held)
    return OutOfMemory(
        phase=walk.passages[-1].mark.phase,
        wanted_bytes=walk.full.wanted_bytes,
        free_bytes=walk.full.free_bytes,
        capacity_bytes=walk.full.capacity_bytes,
        allocated_bytes=walk.full.allocated_bytes,
        reserved_bytes=walk.full.reserved_bytes,
        tensor=Patterns(log).merged([number], log.sizes, 1)[0],
    )
