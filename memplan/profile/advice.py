"""Settings of the allocator, and a preallocated cache, tried on the trace before anything is advised."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.domain.timeline import Finding
from memplan.profile.cache_pool import with_cache_pool
from memplan.profile.events import EventLog
from memplan.profile.passages import run_allocator
from memplan.records import dataclass, replace
from memplan.units import MIB, format_gib

_LEAST_BYTES = 64 * MIB
_LEAST_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What one change of settings, or of the trace, came to."""

    what: str
    peak_reserved_bytes: int
    peak_allocated_bytes: int
    ran_out: bool


def allocator_advice(
    log: EventLog, settings: AllocatorSettings, capacity_bytes: int | None, outside_bytes: int = 0
) -> Iterator[Finding]:
    """The setting that reserves least, where that is worth it: each is replayed, and none is advised on faith."""
    now = _try("as it is", log, settings, capacity_bytes, outside_bytes)
    worth = max(_LEAST_BYTES, int(_LEAST_SHARE * now.peak_reserved_bytes))
    if not now.ran_out and now.peak_reserved_bytes - now.peak_allocated_bytes < worth:
        return
    tried = [_try(changed.describe(), log, changed, capacity_bytes, outside_bytes) for changed in _candidates(settings)]
    finished = [one for one in tried if not one.ran_out]
    if not finished:
        return
    best = min(finished, key=lambda one: one.peak_reserved_bytes)
    # The first that is as good as the best: candidates are in the order of their side effects.
    best = next(one for one in finished if one.peak_reserved_bytes <= 1.005 * best.peak_reserved_bytes)
    saves = now.peak_reserved_bytes - best.peak_reserved_bytes
    if saves < worth and not now.ran_out:
        return
    others = ", ".join(f"{one.what} {_outcome(one)}" for one in tried if one is not best)
    yield Finding(
        code="allocator",
        title=f"other allocator settings would reserve {format_gib(max(0, saves))} less"
        if not now.ran_out
        else "other allocator settings would get through without running out",
        evidence=f"replayed: as it is {_outcome(now)}, {best.what} {_outcome(best)}{f'; {others}' if others else ''}",
        mend=f"PYTORCH_CUDA_ALLOC_CONF={best.what} (--allocator {best.what})",
        saves_bytes=max(0, saves) or None,
        severity="warning",
    )


def _outcome(one: Tried) -> str:
    return "runs out of memory" if one.ran_out else f"reserves {format_gib(one.peak_reserved_bytes)}"


def _candidates(settings: AllocatorSettings) -> list[AllocatorSettings]:
    """What is worth trying, the least invasive first."""
    found = [
        replace(settings, expandable_segments=True),
        replace(settings, expandable_segments=False, roundup_divisions=(8,) * 16),
        replace(settings, expandable_segments=False, max_split_bytes=128 * MIB),
        replace(settings, expandable_segments=False, max_split_bytes=512 * MIB),
    ]
    return [one for one in found if one != settings]


def _try(
    what: str, log: EventLog, settings: AllocatorSettings, capacity_bytes: int | None = None, outside_bytes: int = 0
) -> Tried:
    allocator = make_allocator(settings, capacity_bytes=capacity_bytes, outside_bytes=outside_bytes)
    walk = run_allocator(log, allocator, shares_pools=True)
    return Tried(
        what=what,
        peak_reserved_bytes=max((passage.peak_reserved_bytes for passage in walk.passages), default=0),
        peak_allocated_bytes=max((passage.peak.allocated_bytes for passage in walk.passages), default=0),
        ran_out=walk.full is not None,
    )


def pool_advice(log: EventLog, settings: AllocatorSettings) -> Iterator[Finding]:
    """What it would do to make the KV cache once, at its final size, instead of growing it with every token."""
    pooled = with_cache_pool(log)
    if pooled is None:
        return
    now, then = _try("growing", log, settings), _try("preallocated", pooled, settings)
    saves = now.peak_reserved_bytes - then.peak_reserved_bytes
    fewer = len(log.sizes) - len(pooled.sizes)
    if fewer < 100:
        return
    says = f"{format_gib(abs(saves))} {'less' if saves >= 0 else 'more'} reserved"
    is_worth = saves >= max(_LEAST_BYTES, _LEAST_SHARE * now.peak_reserved_bytes)
    yield Finding(
        code="cache-pool",
        title="the KV cache grows by copying; made once at its full length it would not"
        if saves >= 0
        else "the KV cache grows by copying; making it once would not save memory here",
        evidence=f"replayed with one buffer for each layer, made first: {says}, {fewer:,} allocations fewer",
        mend='cache_implementation="static" (--cache static), or a serving engine with a paged pool'
        if saves >= 0
        else "leave it; a static cache is worth it where graphs are captured",
        saves_bytes=saves if saves > 0 else None,
        severity="warning" if is_worth else "note",
    )
