"""A budget corrected by what start-ups of the same engine, release and GPU printed of its terms.

A correction multiplies a term with what was found and leaves its interval as wide as the runs say; the cache takes or
gives the difference. The verdict follows: what the corrected cache does not hold does not fit.
"""

from __future__ import annotations

from math import floor

from memplan.domain.budget import Group, KvCapacity, Line, MemoryBudget, Verdict
from memplan.domain.correction import Correction
from memplan.records import replace
from memplan.units import format_gib

_GROUPS: dict[str, Group] = {"activation_peak": "activation_peak", "non_torch": "non_torch", "cuda_graph": "cuda_graph"}
_SHARE = 0.2  # the half-width of a line that has none


def with_learned(budget: MemoryBudget, corrections: tuple[Correction, ...]) -> MemoryBudget:
    """Return the budget with its terms moved to what start-ups measured, saying so; unchanged without corrections.

    Not modelled: weights, which headers tell exactly, and a cache whose size was given outright.
    """
    by_group = {_GROUPS[each.term]: each for each in corrections if each.term in _GROUPS}
    lines, shift = [], 0
    for line in budget.lines:
        found = by_group.get(line.group)
        corrected = _corrected(line, found) if found is not None and line.size_bytes > 0 else line
        charged = line.group != "cuda_graph" or "outside the budget" not in line.formula
        shift += (line.size_bytes - corrected.size_bytes) if charged else 0
        lines.append(corrected)
    if all(new is old for new, old in zip(lines, budget.lines, strict=True)):
        return budget
    if budget.settings.get("kv_cache_memory_bytes") is not None:
        shift = 0
    runs = max(len(each.factors) for each in by_group.values())
    note = f"{', '.join(_words(group) for group in by_group)} learned from {runs} start-up{'s' if runs > 1 else ''}"
    note += f" of {budget.engine_name} {budget.engine_version} on this GPU"
    return _with_cache(replace(budget, lines=tuple(lines), warnings=(*budget.warnings, note)), shift)


def _corrected(line: Line, correction: Correction) -> Line:
    size = round(line.size_bytes * correction.factor)
    share = (line.high_bytes - line.low_bytes) / 2 / line.size_bytes if line.high_bytes > line.low_bytes else _SHARE
    half = round(correction.half_width(share) * size)
    return replace(
        line,
        size_bytes=size,
        low_bytes=max(0, size - half),
        high_bytes=size + half,
        provenance="measured",
        formula=f"{line.formula}; x {correction.factor:.3g}, as start-ups on this GPU printed",
    )


def _with_cache(budget: MemoryBudget, shift: int) -> MemoryBudget:
    """The cache line and what it holds, larger or smaller by what the other terms gave back or took."""
    if not shift:
        return budget
    told = budget.extra.get("kv_available_bytes", budget.group_bytes("kv_cache"))
    before = told if isinstance(told, int) else budget.group_bytes("kv_cache")
    after = before + shift
    lines = tuple(
        replace(
            line,
            size_bytes=max(0, after),
            low_bytes=max(0, line.low_bytes + shift),
            high_bytes=max(0, line.high_bytes + shift),
        )
        if line.group == "kv_cache"
        else line
        for line in budget.lines
    )
    kv = _capacity(budget.kv, before, after)
    short = max(0, budget.kv.needed_bytes - after)
    verdict: Verdict = budget.verdict
    reasons = budget.reasons
    if short:
        verdict = "does_not_fit"
        reasons = (f"the KV cache gets {format_gib(max(0, after))}, the requests need {format_gib(kv.needed_bytes)}",)
    elif budget.verdict == "does_not_fit" and before < budget.kv.needed_bytes:
        verdict, reasons = "tight", ("it fits by what was learned, and would not without",)
    extra = {**budget.extra, "kv_available_bytes": after} if "kv_available_bytes" in budget.extra else budget.extra
    shortfall = short if short or verdict != "does_not_fit" else budget.shortfall_bytes
    return replace(budget, lines=lines, kv=kv, verdict=verdict, reasons=reasons, extra=extra, shortfall_bytes=shortfall)


def _capacity(kv: KvCapacity, before: int, after: int) -> KvCapacity:
    """The cache's tokens, blocks and requests, in proportion to whole blocks."""
    if not kv.blocks or before <= 0:
        return kv
    blocks = max(0, floor(kv.blocks * after / before))
    share = blocks / kv.blocks
    return replace(
        kv,
        blocks=blocks,
        capacity_tokens=None if kv.capacity_tokens is None else int(kv.capacity_tokens * share),
        low_tokens=None if kv.low_tokens is None else int(kv.low_tokens * share),
        high_tokens=None if kv.high_tokens is None else int(kv.high_tokens * share),
        max_concurrency=None if kv.max_concurrency is None else round(kv.max_concurrency * share, 2),
    )


def _words(group: Group) -> str:
    return {"activation_peak": "activations", "non_torch": "memory outside of torch", "cuda_graph": "graphs"}[group]
