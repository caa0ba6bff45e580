"""The budget of a model under TensorRT-LLM: a part of what is free once everything else is placed becomes the cache.

    PyTorch flow   cache = (device - peak of the profiled step + the cache it ran with) x free_gpu_memory_fraction
    engine flow    cache = free memory once engine, contexts and buffers are placed x free_gpu_memory_fraction

The temporary cache of the profiled step lies outside torch and is added back, so it cancels out. A max_seq_len that
does not fit the blocks is cut without an error.

Source: tensorrt_llm/_torch/pyexecutor/_util.py (KvCacheCreator), 1.0 to 1.3; cpp kvCacheManager, 0.8 to 0.20;
docs/memory-model.md, "TensorRT-LLM".
"""

from __future__ import annotations

from memplan.budget.weights import check_divides, stage_layers
from memplan.catalog.rules import Rules, load_rules
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.hardware import check_hardware
from memplan.engines.options import EngineOptions
from memplan.engines.tensorrt_llm.blocks import BlockPools, plan_blocks
from memplan.engines.tensorrt_llm.fitted import Fitted, load_fitted
from memplan.engines.tensorrt_llm.memory import HeldMemory, held_memory
from memplan.engines.tensorrt_llm.settings import KNOWN_OPTIONS, TrtllmSettings, resolve
from memplan.engines.tensorrt_llm.weights import draft_layers
from memplan.records import dataclass

_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank of one pipeline stage. `free_bytes` is what the fraction is applied to; it may be negative."""

    held: HeldMemory
    pools: BlockPools
    free_bytes: int
    cache_bytes: int
    blocks: int


class TensorrtLlm:
    """TensorRT-LLM on NVIDIA GPUs."""

    name = "tensorrt-llm"

    def estimate(self, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None) -> MemoryBudget:
        """Return the budget of `spec` on `gpu`.

        Raises: UsageError for settings that it refuses, or for a GPU that is not NVIDIA's.
        """
        from memplan.engines.tensorrt_llm.answer import budget_of

        check_hardware(self.name, gpu)
        rules, fitted = load_rules("tensorrt-llm", version), load_fitted()
        options = EngineOptions("TensorRT-LLM", settings.engine_options, KNOWN_OPTIONS)
        resolved = resolve(spec, settings, options, rules)
        unused = options.unused()
        check_divides(spec, ParallelLayout(tensor=resolved.attention_ranks, pipeline=resolved.layout.pipeline))
        plans = [
            plan_rank(spec, gpu, settings, resolved, rules, fitted, stage) for stage in range(resolved.layout.pipeline)
        ]
        tightest = min(plans, key=lambda plan: (plan.blocks if plan.pools.pools else _NO_LIMIT, plan.cache_bytes))
        return budget_of(spec, gpu, settings, resolved, rules, fitted, tightest, unused)


TENSORRT_LLM = TensorrtLlm()


def plan_rank(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: TrtllmSettings,
    rules: Rules,
    fitted: Fitted,
    stage: int,
) -> RankPlan:
    """Return what one rank of a stage holds."""
    layers = stage_layers(spec, settings.layout.pipeline, stage)
    drafted = draft_layers(spec, asked) if stage == settings.layout.pipeline - 1 else ()
    pools = plan_blocks(spec, (*layers, *drafted), settings)
    held = held_memory(spec, gpu, asked, settings, rules, fitted, stage, pools.state_bytes)
    device = min(gpu.memory_bytes, asked.gpu_free_bytes or gpu.memory_bytes)
    free = device - held.charged_bytes
    if settings.free_before_cache_bytes is not None:
        free = settings.free_before_cache_bytes
    cache = int(free * settings.free_fraction)
    if settings.max_cache_bytes is not None:
        cache = min(cache, settings.max_cache_bytes)
    blocks = min(pools.blocks(cache), max_blocks(settings))
    return RankPlan(held=held, pools=pools, free_bytes=free, cache_bytes=cache, blocks=blocks)


def max_blocks(settings: TrtllmSettings) -> int:
    """As many blocks as max_tokens allows."""
    return _NO_LIMIT if settings.max_tokens is None else settings.max_tokens // settings.tokens_per_block
