"""One rank of one pipeline stage under TensorRT-LLM: its terms and its blocks."""

from __future__ import annotations

from memplan.budget.weights import stage_layers
from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.tensorrt_llm.blocks import BlockPools, plan_blocks
from memplan.engines.tensorrt_llm.fitted import Fitted
from memplan.engines.tensorrt_llm.memory import HeldMemory, held_memory
from memplan.engines.tensorrt_llm.settings import TrtllmSettings
from memplan.engines.tensorrt_llm.weights import draft_layers
from memplan.records import dataclass

NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank of one pipeline stage. `free_bytes` is what the fraction is applied to; it may be negative."""

    held: HeldMemory
    pools: BlockPools
    free_bytes: int
    cache_bytes: int
    blocks: int


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
    return NO_LIMIT if settings.max_tokens is None else settings.max_tokens // settings.tokens_per_block
