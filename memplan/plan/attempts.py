"""Asking an engine for the budget of a candidate: the settings it would be started with, and what to try when it does
not fit.
"""

from __future__ import annotations

from memplan.domain.budget import MemoryBudget
from memplan.domain.plan import PlanRequest, Traffic
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.registry import load_engine
from memplan.engines.starts import with_support
from memplan.errors import MemplanError
from memplan.plan.cells import Cell
from memplan.plan.loads import FULL
from memplan.plan.space import LAYER_SPLIT
from memplan.records import dataclass, replace

_SMALL_STEP = 2048
_LARGE_PART = 0.95
_PROMPTS_HELD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What of the engine's defaults is overridden: tokens of a step, and the part of the GPU it may take."""

    batched_tokens: int | None = None
    utilization: float | None = None

    def settings(self, cell: Cell, concurrency: int, request: PlanRequest) -> ServingSettings:
        """The settings of a candidate, complete for `ServingSettings`; what the user fixed stays."""
        asked, drafted = request.settings, cell.speculation
        per_replica = -(-concurrency // cell.layout.data)
        seqs = asked.max_num_seqs
        if seqs is None and cell.engine not in LAYER_SPLIT:
            seqs = per_replica
        return replace(
            asked,
            layout=cell.layout,
            workload=Workload(
                context_tokens=request.traffic.context_tokens,
                concurrency=cell.fullness.full_requests(concurrency, cell.layout.data),
                mean_tokens=asked.workload.mean_tokens,
            ),
            weight_offload_bytes=cell.offload_bytes,
            draft=drafted.spec if drafted else None,
            num_speculative_tokens=drafted.num_tokens if drafted else 0,
            quant=cell.stored.scheme,
            kv_dtype=cell.kv_dtype or asked.kv_dtype,
            max_num_seqs=seqs,
            max_num_batched_tokens=self.batched_tokens or asked.max_num_batched_tokens,
            gpu_memory_utilization=self.utilization or asked.gpu_memory_utilization,
        )


def attempts(cell: Cell) -> tuple[Attempt, ...]:
    """What to try in turn: the engine's defaults, smaller steps, then a larger part of the GPU as well."""
    if cell.engine in LAYER_SPLIT:
        return (Attempt(),)
    small = Attempt(batched_tokens=_SMALL_STEP)
    return Attempt(), small, replace(small, utilization=_LARGE_PART)


def prefill_settings(cell: Cell, prefill: ParallelLayout, attempt: Attempt, request: PlanRequest) -> ServingSettings:
    """The settings of a pool that only reads prompts: a replica holds the one it reads and the one it sends."""
    reading = replace(cell, layout=prefill, fullness=FULL)
    return attempt.settings(reading, _PROMPTS_HELD * prefill.data, request)


def estimate(cell: Cell, settings: ServingSettings) -> tuple[MemoryBudget | None, str]:
    """Return the budget, as `memplan estimate` would answer it where it fits; or None and why the engine refuses."""
    try:
        budget = load_engine(cell.engine).estimate(cell.stored.spec, cell.gpu, settings, cell.version)
    except MemplanError as error:
        return None, error.message
    if budget.verdict != "fits":
        return budget, ""
    budget = with_support(budget, cell.stored.spec, cell.gpu, settings, cell.version)
    shown = budget.extra["servable"]
    if isinstance(shown, dict) and not shown["runs"]:
        return None, str(shown["reason"])
    return (
        replace(
            budget,
            settings={**budget.settings, "concurrency": settings.workload.concurrency},
            weights_scheme=cell.stored.spec.quantization or cell.stored.spec.dtype.value,
            price=cell.gpu.price,
        ),
        "",
    )


def next_attempt(cell: Cell, attempt: Attempt, budget: MemoryBudget) -> Attempt | None:
    """The next thing to try, left out where even all that it returns is less than what is missing."""
    known = attempts(cell)
    following = known[known.index(attempt) + 1 :]
    utilization = budget.settings.get("gpu_memory_utilization")
    part = utilization if isinstance(utilization, float) else _LARGE_PART
    room = budget.group_bytes("activation_peak") + max(0.0, _LARGE_PART - part) * budget.gpu_memory_bytes
    if not following or budget.shortfall_bytes > room:
        return None
    return following[0]


def headroom_bytes(budget: MemoryBudget) -> int:
    """What is left on the fullest GPU beside the cache of the asked requests."""
    spare = max(0, budget.group_bytes("kv_cache") - budget.kv.needed_bytes)
    return (
        spare if budget.engine_name not in LAYER_SPLIT else spare + max(0, budget.gpu_memory_bytes - budget.used_bytes)
    )


def room_of(budget: MemoryBudget, concurrency: int) -> float:
    """How many requests of the longest length have room at once, in all replicas."""
    if budget.engine_name in LAYER_SPLIT:
        needed = budget.kv.needed_bytes
        if needed <= 0:
            return float(concurrency)
        return concurrency * (1 + headroom_bytes(budget) / needed)
    most = budget.kv.max_concurrency
    return most if most is not None else float("inf")


def stretch(engine: str, traffic: Traffic) -> float:
    """How many more requests have room at the length they really have: pages are taken as a request grows, while a
    slot of a contiguous cache keeps its whole length.
    """
    if engine in LAYER_SPLIT:
        return 1.0
    return max(1.0, traffic.context_tokens / (traffic.prompt_tokens + traffic.output_tokens))
