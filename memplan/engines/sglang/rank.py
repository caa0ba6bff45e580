"""One rank of one pipeline stage under SGLang: its terms in the order in which a start-up takes them."""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
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
from memplan.engines.sglang.fitted import Fitted
from memplan.engines.sglang.pool_sizes import Pools
from memplan.engines.sglang.pools import plan_pools
from memplan.engines.sglang.settings import SglangSettings
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
