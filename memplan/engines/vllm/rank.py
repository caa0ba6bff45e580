"""One rank of one pipeline stage under vLLM: its terms in the order in which a start-up takes them."""

from __future__ import annotations

from math import ceil

from memplan.budget.allocator import allocate
from memplan.budget.weights import RankWeights, WeightRules, rank_weights, stage_layers
from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.domain.tensors import Tensor
from memplan.engines.vllm.extras import Extras, extra_memory
from memplan.engines.vllm.fitted import Fitted
from memplan.engines.vllm.graphs import GraphMemory, graph_memory
from memplan.engines.vllm.kv_groups import CacheGroups, cache_groups
from memplan.engines.vllm.lanes import predictor_buffer_bytes
from memplan.engines.vllm.loading import copied_bytes, map_tensors, starts_from_16_bits
from memplan.engines.vllm.overheads import Outside, charges_segments, outside_torch
from memplan.engines.vllm.padding import Padding, rocm_padding
from memplan.engines.vllm.profile import ActivationPeak, activation_peak
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank of one pipeline stage: its terms, its cache pool and how many blocks it holds.

    `kv_bytes` may be negative: what is missing before any cache. `charged_bytes` is everything the release takes off
    the requested memory.
    """

    stage: int
    weights: RankWeights
    weight_bytes: int
    load_bytes: int
    extras: Extras
    padding: Padding
    activation: ActivationPeak
    outside: Outside
    graphs: GraphMemory
    requested_bytes: int
    charged_bytes: int
    kv_bytes: int
    groups: CacheGroups | None

    @property
    def blocks(self) -> int:
        if self.groups is None or self.kv_bytes <= 0:
            return 0
        return self.kv_bytes // self.groups.block_bytes


def plan_rank(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: VllmSettings,
    rules: Rules,
    fitted: Fitted,
    stage: int,
) -> RankPlan:
    """Return what the ranks of one pipeline stage hold."""
    layout = settings.layout
    layers = stage_layers(spec, layout.pipeline, stage)
    is_last = stage == layout.pipeline - 1
    weights = rank_weights(spec, layout, WeightRules(dtype=settings.dtype), stage)
    tables = rotary_bytes(spec, settings, rules, len(layers))
    copies = copied_bytes(layers, spec, rules, layout.tensor)
    extras = extra_memory(layers, asked, settings, rules, is_last=is_last)
    kept = (predictor_buffer_bytes(spec, settings),) if is_last else ()
    loaded = allocate((*weights.requests, *extras.requests, *copies, *tables, *kept))
    padding = rocm_padding(layers, gpu, settings, rules, aiter=asked.engine_options.get("rocm_use_aiter") is True)
    weight_bytes = max(0, loaded.allocated_bytes + padding.charged_bytes - asked.weight_offload_bytes)
    activation = activation_peak(
        spec,
        layers,
        gpu,
        asked,
        settings,
        rules,
        kept_mib=fitted.activation_kept_mib,
        is_first=stage == 0,
        is_last=is_last,
    )
    graphs = graph_memory(spec, layers, gpu, settings, rules, fitted)
    routed = any(layer.mlp and layer.mlp.num_experts for layer in layers)
    outside = outside_torch(gpu, settings, rules, fitted, routed=routed)
    if charges_segments(settings, rules):
        idle = loaded.reserved_bytes - loaded.allocated_bytes
        outside = replace(outside, charged_bytes=outside.charged_bytes + idle)
    outside = replace(outside, uncharged_bytes=outside.uncharged_bytes + padding.uncharged_bytes)
    charged = weight_bytes + activation.size_bytes + outside.charged_bytes + graphs.charged_bytes
    charged += _cached_bytes(spec, layers, gpu, settings, rules, activation.size_bytes)
    requested = ceil(gpu.memory_bytes * settings.utilization)
    kv_bytes = requested - charged if settings.kv_cache_memory_bytes is None else settings.kv_cache_memory_bytes
    return RankPlan(
        stage=stage,
        weights=weights,
        weight_bytes=weight_bytes,
        load_bytes=_load_bytes(spec, asked, settings, rules, weight_bytes, stage),
        extras=extras,
        padding=padding,
        activation=activation,
        outside=outside,
        graphs=graphs,
        requested_bytes=requested,
        charged_bytes=charged,
        kv_bytes=kv_bytes,
        groups=cache_groups((*layers, *extras.draft_layers), settings, rules),
    )


def _load_bytes(
    spec: ModelSpec, asked: ServingSettings, settings: VllmSettings, rules: Rules, weight_bytes: int, stage: int
) -> int:
    """The most that the weights of a rank take while they load."""
    if not starts_from_16_bits(spec, asked, rules):
        return weight_bytes
    plain = map_tensors(spec, _unquantized)
    whole = rank_weights(plain, settings.layout, WeightRules(dtype=settings.dtype), stage).total_bytes
    return whole + (weight_bytes if rules["online_fp8_load"] == "both" else 0)


def _unquantized(tensor: Tensor) -> Tensor:
    return tensor if tensor.storage is None else replace(tensor, storage=None, dtype=None)


def rotary_bytes(spec: ModelSpec, settings: VllmSettings, rules: Rules, num_layers: int) -> tuple[int, ...]:
    """The rotary tables of a model, in its compute type: one for all layers that need the same, or one for each."""
    element_bytes = settings.dtype.bits // 8
    owners = rules["tables_of_layers"]
    copies = num_layers if spec.model_type in owners or "all" in owners else 1
    return tuple(
        table.positions * table.width * element_bytes * (rules["multimodal_positions"] if table.is_multimodal else 1)
        for table in spec.rotary
        for _ in range(copies)
    )


def _cached_bytes(
    spec: ModelSpec, layers: tuple[Layer, ...], gpu: GpuSpec, settings: VllmSettings, rules: Rules, activation: int
) -> int:
    """Cached blocks that a release counts as used on top of the activation peak."""
    if settings.generation != "v0" or rules["accounting"] not in ("reserved", "device") or not layers:
        return 0
    from memplan.engines.vllm.replay import habits_of, reserved_by_profiling

    habits = habits_of(gpu, settings, rules)
    return max(0, reserved_by_profiling(spec, layers[-1], settings, habits, len(layers)) - activation)
