"""What a budget says of starting at all: a format without a kernel on the card, or one that runs by another's.

The verdict stays that of memory. A start-up that the tables refuse is the first of its reasons, so that no page and no
line that says `fits` leaves it out.
"""

from __future__ import annotations

from memplan.catalog.servable import Support, support
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.records import replace

_PLAIN_CACHES = ("auto", "bfloat16", "float16", "float32")


def with_support(
    budget: MemoryBudget, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None
) -> MemoryBudget:
    """Return the budget with what is known of its start-up: a first reason where it is refused, a warning where the
    weights run by a kernel that computes in a wider type, and `servable` among what JSON shows.
    """
    found = _support(budget, spec, gpu, settings, version)
    shown: dict[str, object] = {
        "runs": found.runs,
        "kernel": found.kernel,
        "speed": found.speed if found.runs else None,
        "reason": found.reason,
        "hint": found.hint,
        "source": found.source,
    }
    budget = replace(budget, extra={**budget.extra, "servable": shown})
    if not found.runs:
        instead = f"; {found.hint}" if found.hint else ""
        refusal = f"cannot start on {gpu.name}: {found.reason}{instead}"
        return replace(budget, reasons=(refusal, *budget.reasons))
    if found.speed == "emulated":
        note = f"{spec.quantization} weights run by {found.kernel} on {gpu.name}, {found.reason}"
        return replace(budget, warnings=(*budget.warnings, note))
    return budget


def starts(budget: MemoryBudget, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings) -> bool:
    """Whether what a budget is of starts, memory apart."""
    return _support(budget, spec, gpu, settings, budget.engine_version).runs


def _support(
    budget: MemoryBudget, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None
) -> Support:
    """Ask the tables about the weights and the cache as the engine resolved them."""
    cache = budget.settings.get("kv_cache_dtype")
    resolved = cache if isinstance(cache, str) and cache not in _PLAIN_CACHES else settings.kv_dtype
    ranks = budget.settings.get("ep_size") or budget.settings.get("moe_expert_parallel_size") or 1
    layout = replace(settings.layout, expert=True) if isinstance(ranks, int) and ranks > 1 else settings.layout
    return support(spec, None, resolved, gpu, layout, budget.engine_name, version)
