"""What each change brings, computed again: by the budget where there is one, else from the log's own figures.

The budget's answer is tied to what was measured: a change moves the measured room by as much as it moves the budget's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

from memplan.doctor.changes import Change
from memplan.doctor.changes_by_cause import changes_for
from memplan.doctor.changes_llama_cpp import left_for_cache
from memplan.doctor.facts import Facts
from memplan.domain.budget import MemoryBudget
from memplan.domain.diagnosis import Basis, Diagnosis, Mend
from memplan.records import replace

Recompute = Callable[[Mapping[str, object]], MemoryBudget | None]
_RISK = {"none": 0, "low": 1, "medium": 2, "high": 3}
_MOST = 8
_WORTH_BYTES = 16 << 20
# Causes that room for the cache mends; for all others room must come from elsewhere.
_WANT_CACHE = ("kv_too_small_for_len", "no_kv_blocks", "preemption", "runs_full", "context_exceeded")


def with_mends(
    diagnosis: Diagnosis, facts: Facts, budget: MemoryBudget | None, recompute: Recompute | None
) -> Diagnosis:
    """Return a diagnosis with its mends: those that are enough first, then by risk and by what they bring."""
    found = list(_tried(diagnosis.cause, facts, budget, recompute))
    unique = {mend.change: mend for mend in reversed(found) if _is_worth(mend)}
    order = {mend.change: rank for rank, mend in enumerate(found)}
    ranked = sorted(
        unique.values(),
        key=lambda mend: (
            {True: 0, None: 1, False: 2}[mend.mends],
            _RISK[mend.risk],
            -(mend.effect_bytes or 0) if mend.mends is False else 0,
            order[mend.change],
        ),
    )
    return replace(diagnosis, mends=(*diagnosis.mends, *ranked[:_MOST]))


def _tried(cause: str, facts: Facts, budget: MemoryBudget | None, recompute: Recompute | None) -> Iterator[Mend]:
    """Every change with what it brings; of a ladder one: the least that is enough, the most where none is."""
    for ladder, group in groupby(changes_for(cause, facts), key=lambda change: change.ladder):
        mends = [_mend(cause, change, facts, budget, recompute) for change in group]
        if not ladder:
            yield from mends
            continue
        told = [mend for mend in mends if mend.mends is not None] or mends[:1]
        yield next((mend for mend in told if mend.mends), told[-1])


def _is_worth(mend: Mend) -> bool:
    """Whether a change is worth a line: what the budget found to bring nothing is not."""
    return (
        mend.mends is True or mend.basis != "budget" or mend.effect_bytes is None or mend.effect_bytes >= _WORTH_BYTES
    )


def available_bytes(budget: MemoryBudget) -> int:
    """What the engine would have for its cache; negative when weights and a step leave nothing."""
    found = budget.extra.get("kv_available_bytes", budget.group_bytes("kv_cache"))
    return found if isinstance(found, int) else budget.group_bytes("kv_cache")


def _mend(cause: str, change: Change, facts: Facts, budget: MemoryBudget | None, recompute: Recompute | None) -> Mend:
    after = recompute(change.options) if recompute is not None and change.options else None
    basis: Basis = "log" if change.room_bytes is not None or change.needs_share is not None else "rule"
    if budget is None or after is None:
        effect, enough = _by_log(cause, change, facts)
    else:
        basis = "budget"
        effect, enough = _by_budget(cause, change, facts, budget, after)
    return Mend(
        change=change.label,
        risk=change.risk,
        basis=basis,
        effect_bytes=effect,
        mends=change.cures if change.cures is not None else enough,
        note=change.note,
    )


def _by_log(cause: str, change: Change, facts: Facts) -> tuple[int | None, bool | None]:
    needed, available = facts.needed_bytes, facts.available_bytes
    if change.needs_share is not None and needed:
        saved = int(needed * (1 - change.needs_share))
        return saved, (available is not None and needed - saved <= available) if cause in _WANT_CACHE else None
    if change.room_bytes is None:
        return None, None
    if cause == "kv_allocation_oom" and needed and (room := left_for_cache(facts)) is not None:
        return change.room_bytes, needed - change.room_bytes <= room
    if cause in _WANT_CACHE and needed and available is not None:
        return change.room_bytes, available + change.room_bytes >= needed
    return change.room_bytes, None


def _by_budget(
    cause: str, change: Change, facts: Facts, before: MemoryBudget, after: MemoryBudget
) -> tuple[int | None, bool | None]:
    """The measured room moved by what the budget says; where nothing was measured, the budget's own verdict."""
    room = available_bytes(after) - available_bytes(before)
    if cause not in _WANT_CACHE:
        moved = change.room_bytes if change.room_bytes is not None else _outside(before, after)
        return moved, None if cause in ("runtime_oom", "cuda_graph_oom") else _is_enough(before, after)
    needed_after = after.kv.needed_bytes
    saved = room + before.kv.needed_bytes - needed_after
    if facts.available_bytes is None:
        return saved, after.verdict != "does_not_fit"
    needed = facts.needed_bytes or before.kv.needed_bytes
    share = needed_after / before.kv.needed_bytes if before.kv.needed_bytes else 1.0
    return saved, facts.available_bytes + room >= needed * share


def _is_enough(before: MemoryBudget, after: MemoryBudget) -> bool | None:
    """Whether a run that the budget refuses would be taken then; None where it did not see the failure coming."""
    if before.verdict == "does_not_fit":
        return after.verdict != "does_not_fit"
    return True if before.verdict == "tight" and after.verdict == "fits" else None


def _outside(before: MemoryBudget, after: MemoryBudget) -> int:
    """What everything but the cache takes less."""
    used = [each.used_bytes - each.group_bytes("kv_cache") for each in (before, after)]
    return used[0] - used[1]
