"""From a budget to a simulated deployment: the blocks of its cache, the limits of its scheduler, what moving costs.

An engine's own defaults are in the budget's settings; what a simulation alone asks for (static batching, contiguous
reservation, routing) is a Scheduling on top.
"""

from __future__ import annotations

from typing import Literal

from memplan.budget.kv_cache import kv_format
from memplan.budget.links import pcie_bytes_per_s
from memplan.budget.pools import transfer_between
from memplan.domain.budget import MemoryBudget, PoolGroup
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.simulation import (
    Allocation,
    Batching,
    CacheGroup,
    Preemption,
    Routing,
    SimulationSettings,
    StepTimes,
)
from memplan.domain.speed import Efficiency
from memplan.errors import DoesNotFit, UsageError
from memplan.records import dataclass, replace

ENGINES = ("vllm", "sglang", "tensorrt-llm", "llama.cpp")
_FEW_TOKENS = 512  # a step of an engine whose budget does not say how many tokens it takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    """How the deployment serves, where a budget does not tell."""

    batching: Batching = "continuous"
    allocation: Allocation = "paged"
    reserve: Literal["longest", "power", "exact"] = "longest"
    preemption: Preemption = "recompute"
    swap_bytes: int = 0
    watermark_fraction: float | None = None
    max_queue: int | None = None
    routing: Routing = "round-robin"
    prefill_replicas: int = 0


def simulation_settings(
    budget: MemoryBudget,
    spec: ModelSpec,
    gpu: GpuSpec,
    layout: ParallelLayout,
    efficiency: Efficiency,
    steps: StepTimes,
    asked: Scheduling,
) -> SimulationSettings:
    """Return the deployment that a budget describes.

    Raises: DoesNotFit when its cache has no block; UsageError for an engine without a scheduler of its own.
    """
    if budget.engine_name not in ENGINES:
        raise UsageError(f"{budget.engine_name} has no scheduler to simulate", hint=f"use one of {', '.join(ENGINES)}")
    kv = budget.kv
    groups = tuple(_group(each) for each in kv.groups) or (CacheGroup(block_tokens=_page_tokens(budget)),)
    blocks = (kv.blocks or 0) - kv.held_back_blocks if budget.engine_name != "llama.cpp" else kv.capacity_tokens or 0
    if blocks < 1:
        raise DoesNotFit(
            f"{budget.model_name} leaves no room for a cache on {budget.num_gpus} x {budget.gpu_name}",
            hint="`memplan estimate` shows what would make room",
        )
    found = SimulationSettings(
        num_blocks=blocks,
        groups=groups,
        context_tokens=_count(budget, "max_model_len", "slot_tokens") or spec.max_context_tokens,
        max_num_seqs=_count(budget, "max_num_seqs", "slots") or 256,
        max_num_batched_tokens=_count(budget, "max_num_batched_tokens", "batch_size") or _FEW_TOKENS,
        batching=asked.batching,
        allocation=asked.allocation,
        reserve=asked.reserve,
        async_scheduling=_is_asynchronous(budget, asked),
        chunked_prefill=budget.settings.get("enable_chunked_prefill") is not False,
        prefix_caching=_keeps_prefixes(budget) and asked.allocation == "paged",
        max_queue=asked.max_queue,
        preemption=asked.preemption,
        replicas=layout.data,
        routing=asked.routing,
        steps=steps,
    )
    if asked.watermark_fraction is not None:
        found = replace(found, watermark_fraction=asked.watermark_fraction)
    if asked.preemption == "swap":
        size = budget.group_bytes("kv_cache") // blocks
        bus = pcie_bytes_per_s(gpu) * efficiency.pcie_fraction
        found = replace(found, host_blocks=asked.swap_bytes // max(1, size), swap_s=size / bus)
    if asked.prefill_replicas:
        seconds = _transfer_s(budget, spec, gpu, layout, efficiency, asked.prefill_replicas)
        found = replace(found, prefill_replicas=asked.prefill_replicas, transfer_s=seconds)
    return found


def compute_dtype(spec: ModelSpec) -> DType:
    """What the matrices are multiplied in where weights are not narrower."""
    return spec.dtype if spec.dtype in (DType.F16, DType.BF16) else DType.F16


def cache_type(budget: MemoryBudget) -> str | None:
    """The cache's type as the budget was computed with it."""
    found = budget.settings.get("kv_cache_dtype", budget.settings.get("cache_type_k"))
    return {"f16": "float16"}.get(found, found) if isinstance(found, str) else None


def _group(group: PoolGroup) -> CacheGroup:
    """A state or an encoder's cache takes a fixed number of blocks: a window that is always full."""
    if group.kind == "window":
        return CacheGroup(block_tokens=group.block_tokens, window_tokens=group.window_tokens)
    if group.kind == "chunk":
        return CacheGroup(block_tokens=group.block_tokens, chunk_tokens=group.window_tokens)
    if group.kind in ("state", "cross"):
        return CacheGroup(block_tokens=group.block_tokens, window_tokens=1)
    return CacheGroup(block_tokens=group.block_tokens)


def _page_tokens(budget: MemoryBudget) -> int:
    """The tokens of a page; llama.cpp's cells hold one token each."""
    return 1 if budget.engine_name == "llama.cpp" else budget.kv.block_size or 1


def _count(budget: MemoryBudget, *names: str) -> int | None:
    found = (budget.settings.get(name) for name in names)
    return next((each for each in found if isinstance(each, int) and each > 0), None)


def _keeps_prefixes(budget: MemoryBudget) -> bool:
    """Whether finished requests leave their blocks to be found again, as the engine is set up."""
    settings = budget.settings
    if "enable_prefix_caching" in settings:
        return bool(settings["enable_prefix_caching"])
    if "disable_radix_cache" in settings:
        return not settings["disable_radix_cache"]
    return budget.engine_name == "tensorrt-llm"  # kv_cache_config.enable_block_reuse, on by default


def _is_asynchronous(budget: MemoryBudget, asked: Scheduling) -> bool:
    """Whether vLLM schedules a step ahead; batches, caches and swapping that are not its own are compared without."""
    is_vllm = (asked.batching, asked.allocation, asked.preemption) == ("continuous", "paged", "recompute")
    return is_vllm and bool(budget.settings.get("async_scheduling"))


def _transfer_s(
    budget: MemoryBudget,
    spec: ModelSpec,
    gpu: GpuSpec,
    layout: ParallelLayout,
    efficiency: Efficiency,
    prefill_replicas: int,
) -> float:
    """Seconds that a token's cache takes from the replica that reads a prompt to the one that answers it."""
    prompt = 4096
    per_replica = layout.tensor * layout.pipeline
    seconds, _ = transfer_between(
        spec,
        gpu,
        kv_format(cache_type(budget), compute_dtype(spec)),
        prompt,
        (layout.tensor, layout.tensor),
        per_replica * (layout.data + prefill_replicas),
        efficiency,
    )
    return seconds / prompt
