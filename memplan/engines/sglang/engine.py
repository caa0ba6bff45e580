"""The budget of a model under SGLang: what is available after loading, less the part of what was available before that
the fraction leaves alone, becomes the pools.

    pool = available after loading - available before loading x (1 - mem_fraction_static)

The request table, the attention workspaces, CUDA graphs and activations lie outside the fraction.

Source: sglang/srt/model_executor/model_runner.py, 0.3.0 to 0.5.23; docs/memory-model.md, "SGLang".
"""

from __future__ import annotations

from memplan.budget.weights import check_divides
from memplan.catalog.rules import Rules, load_rules
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.hardware import check_hardware
from memplan.engines.options import EngineOptions
from memplan.engines.sglang.device import (
    BeforeLoad,
    activation_bytes,
    before_load,
    decode_graph_bytes,
    first_kernels_bytes,
    prefill_graph_bytes,
    request_table_bytes,
    workspace_bytes,
)
from memplan.engines.sglang.fitted import Fitted, load_fitted
from memplan.engines.sglang.pools import Pools, plan_pools
from memplan.engines.sglang.settings import KNOWN_OPTIONS, SglangSettings, resolve
from memplan.engines.sglang.weights import DeviceWeights, device_weights, stage_layers
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What the fullest rank of one pipeline stage holds.

    `pool_bytes` may be negative: what is missing before any cache. `tokens` is the capacity of its pools alone.
    """

    before: BeforeLoad
    weights: DeviceWeights
    pools: Pools
    pool_bytes: int
    tokens: int
    table_bytes: int
    workspace_bytes: int
    decode_graph_bytes: int
    prefill_graph_bytes: int
    activation_bytes: int


class Sglang:
    """SGLang on NVIDIA and AMD GPUs."""

    name = "sglang"

    def estimate(self, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None) -> MemoryBudget:
        """Return the budget of `spec` on `gpu`.

        Raises: UsageError for settings that it refuses, or for a GPU that is neither NVIDIA's nor AMD's.
        """
        from memplan.engines.sglang.answer import budget_of

        check_hardware(self.name, gpu)
        rules, fitted = load_rules("sglang", version), load_fitted()
        options = EngineOptions("SGLang", settings.engine_options, KNOWN_OPTIONS)
        resolved = resolve(spec, gpu, settings, options, rules)
        unused = options.unused()
        check_divides(spec, ParallelLayout(tensor=resolved.ranks.attention, pipeline=resolved.ranks.pipeline))
        plans = [
            plan_rank(spec, gpu, settings, resolved, rules, fitted, stage) for stage in range(resolved.ranks.pipeline)
        ]
        tightest = min(plans, key=lambda plan: (plan.tokens if not plan.pools.is_empty else 1 << 62, plan.pool_bytes))
        return budget_of(spec, gpu, settings, resolved, rules, fitted, tightest, unused)


SGLANG = Sglang()


def plan_rank(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: SglangSettings,
    rules: Rules,
    fitted: Fitted,
    stage: int,
) -> RankPlan:
    """Return what the fullest rank of one pipeline stage holds."""
    layers = stage_layers(spec, settings.ranks.pipeline, stage)
    before = before_load(gpu, asked, settings, rules, fitted)
    weights = device_weights(
        spec,
        gpu,
        settings,
        rules,
        stage,
        first_kernels_bytes=first_kernels_bytes(settings, gpu, rules, fitted),
        lora=asked.lora,
        draft=asked.draft,
    )
    pools = plan_pools(spec, layers, gpu, settings, rules)
    slack = before.available_bytes * (1 - settings.mem_fraction)
    pool_bytes = int(before.available_bytes - weights.total_bytes - slack)
    if asked.kv_cache_memory_bytes is not None:
        pool_bytes = min(pool_bytes, asked.kv_cache_memory_bytes)
    tokens = pools.tokens(pool_bytes)
    return RankPlan(
        before=before,
        weights=weights,
        pools=pools,
        pool_bytes=pool_bytes,
        tokens=tokens,
        table_bytes=request_table_bytes(tokens, settings, rules),
        workspace_bytes=workspace_bytes(gpu, fitted),
        decode_graph_bytes=decode_graph_bytes(len(layers), settings, rules, fitted),
        prefill_graph_bytes=prefill_graph_bytes(len(layers), settings, fitted),
        activation_bytes=activation_bytes(spec, layers, settings),
    )
