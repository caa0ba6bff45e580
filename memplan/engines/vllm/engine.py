"""The budget of a model under vLLM: utilization x device memory, less weights, activation peak, what lies outside
torch, and CUDA graphs where the release charges them; the rest becomes cache pages.

Source: vllm/worker/worker.py and vllm/v1/worker/gpu_worker.py, 0.2 to 0.33; docs/memory-model.md, "vLLM".
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from memplan.budget.allocator import allocated_bytes
from memplan.budget.kv_cache import model_token_bytes
from memplan.budget.weights import RankWeights, WeightRules, check_divides, rank_weights, stage_layers
from memplan.catalog.rules import Rules, load_rules
from memplan.domain.budget import KvCapacity, Line, MemoryBudget, Verdict
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.vllm.kv_groups import CacheGroups, cache_groups
from memplan.engines.vllm.profile import ActivationPeak, activation_peak, graph_bytes, non_torch_bytes
from memplan.engines.vllm.settings import VllmSettings, resolve
from memplan.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank of one pipeline stage: its terms, its cache pool and how many blocks it holds."""

    stage: int
    weights: RankWeights
    rounding_bytes: int
    activation: ActivationPeak
    non_torch_bytes: int
    graph_bytes: int
    kv_bytes: int
    groups: CacheGroups | None

    @property
    def blocks(self) -> int:
        if self.groups is None or self.kv_bytes <= 0:
            return 0
        return self.kv_bytes // self.groups.block_bytes


class Vllm:
    """vLLM on NVIDIA, AMD and Intel GPUs."""

    name = "vllm"

    def estimate(self, spec: ModelSpec, gpu: GpuSpec, settings: ServingSettings, version: str | None) -> MemoryBudget:
        """Return the budget of `spec` on `gpu`."""
        rules = load_rules("vllm", version)
        check_divides(spec, settings.layout)
        resolved = resolve(spec, gpu, settings, rules)
        plans = [_plan_rank(spec, gpu, resolved, rules, stage) for stage in range(settings.layout.pipeline)]
        tightest = min(plans, key=lambda plan: (plan.blocks if plan.groups else 1 << 62, plan.kv_bytes))
        return _budget(spec, gpu, settings, resolved, rules, tightest)


VLLM = Vllm()


def _plan_rank(spec: ModelSpec, gpu: GpuSpec, settings: VllmSettings, rules: Rules, stage: int) -> RankPlan:
    layout = settings.layout
    layers = stage_layers(spec, layout.pipeline, stage)
    weights = rank_weights(spec, layout, WeightRules(dtype=settings.dtype), stage)
    activation = activation_peak(spec, layers, settings, rules, samples=stage == layout.pipeline - 1)
    outside = non_torch_bytes(settings, rules)
    graphs = graph_bytes(len(layers), settings, rules)
    tables = tuple(table.positions * table.width * settings.dtype.bits // 8 for table in spec.rotary)
    rounding = allocated_bytes((*weights.requests, *tables)) - weights.total_bytes
    charged = (
        weights.total_bytes + rounding + activation.size_bytes + outside + (graphs if rules["graphs_in_budget"] else 0)
    )
    requested = ceil(gpu.memory_bytes * settings.utilization)
    kv_bytes = settings.kv_cache_memory_bytes or requested - charged
    return RankPlan(
        stage=stage,
        weights=weights,
        rounding_bytes=rounding,
        activation=activation,
        non_torch_bytes=outside,
        graph_bytes=graphs,
        kv_bytes=kv_bytes,
        groups=cache_groups(layers, settings, rules),
    )


def _budget(
    spec: ModelSpec, gpu: GpuSpec, asked: ServingSettings, settings: VllmSettings, rules: Rules, plan: RankPlan
) -> MemoryBudget:
    capacity = _capacity(spec, asked, settings, rules, plan)
    verdict, shortfall, reasons = _verdict(capacity, plan, settings)
    return MemoryBudget(
        model_name=spec.name,
        architecture=spec.architecture,
        parameters=spec.parameters,
        active_parameters=spec.active_parameters,
        weights_source=spec.weights_source,
        gpu_name=gpu.name,
        num_gpus=settings.layout.num_ranks,
        gpu_memory_bytes=gpu.memory_bytes,
        engine_name="vllm",
        engine_version=rules.version,
        settings=settings.as_dict(),
        lines=_lines(plan, settings, rules),
        kv=capacity,
        host_bytes=4 * GIB,
        verdict=verdict,
        shortfall_bytes=shortfall,
        reasons=reasons,
    )


def _lines(plan: RankPlan, settings: VllmSettings, rules: Rules) -> tuple[Line, ...]:
    lines = [
        Line(
            name=f"weights: {role.value}",
            group="weights",
            size_bytes=size,
            low_bytes=size,
            high_bytes=size,
            provenance="derived",
            formula="elements / ranks x bytes per element",
        )
        for role, size in plan.weights.by_role.items()
    ]
    lines.append(
        _line(
            "weights: rotary tables, rounding",
            "weights",
            plan.rounding_bytes,
            "derived",
            "positions x width; blocks kept whole by torch",
        )
    )
    peak = plan.activation
    lines.append(_line("activation peak", "activation_peak", peak.size_bytes, "modelled", f"set by the {peak.cause}"))
    lines.append(_line("outside torch", "non_torch", plan.non_torch_bytes, "modelled", "context, cuBLAS, NCCL"))
    lines.append(_line("CUDA graphs", "cuda_graph", plan.graph_bytes, "modelled", "captured sizes x layers"))
    lines.append(_line("KV cache", "kv_cache", max(0, plan.kv_bytes), "derived", "requested - everything charged"))
    return tuple(lines)


def _line(name: str, group: str, size: int, provenance: str, formula: str) -> Line:
    return Line(
        name=name,
        group=group,  # type: ignore[arg-type]
        size_bytes=size,
        low_bytes=size,
        high_bytes=size,
        provenance=provenance,  # type: ignore[arg-type]
        formula=formula,
    )


def _capacity(
    spec: ModelSpec, asked: ServingSettings, settings: VllmSettings, rules: Rules, plan: RankPlan
) -> KvCapacity:
    groups, blocks = plan.groups, plan.blocks
    bytes_per_token = model_token_bytes(spec, settings.kv)
    if groups is None:
        return KvCapacity(
            bytes_per_token=bytes_per_token,
            capacity_tokens=None,
            blocks=None,
            block_size=None,
            max_concurrency=None,
            max_context_tokens=spec.max_context_tokens,
            needed_bytes=0,
            needed_tokens=0,
        )
    usable = max(0, blocks - (1 if settings.generation == "v1" else 0))
    per_request = groups.blocks_of(settings.context_tokens)
    concurrency = asked.workload.concurrency
    return KvCapacity(
        bytes_per_token=bytes_per_token,
        capacity_tokens=_printed_tokens(groups, blocks, per_request, settings, rules),
        blocks=blocks,
        block_size=groups.block_size,
        max_concurrency=round(blocks / per_request, 2) if per_request else None,
        max_context_tokens=groups.max_tokens(usable, spec.max_context_tokens),
        needed_bytes=per_request * concurrency * groups.block_bytes,
        needed_tokens=settings.context_tokens * concurrency,
    )


def _printed_tokens(groups: CacheGroups, blocks: int, per_request: int, settings: VllmSettings, rules: Rules) -> int:
    """What this release's log line says for its cache."""
    if settings.generation == "v0" or rules["printed_tokens"] == "blocks":
        return blocks // len(groups.pages) * groups.block_size
    return int(blocks / per_request * settings.context_tokens)


def _verdict(capacity: KvCapacity, plan: RankPlan, settings: VllmSettings) -> tuple[Verdict, int, tuple[str, ...]]:
    if plan.kv_bytes <= 0:
        return "does_not_fit", -plan.kv_bytes + capacity.needed_bytes, ("nothing is left for the KV cache",)
    short = capacity.needed_bytes - plan.kv_bytes
    if short > 0:
        return "does_not_fit", short, ("the KV cache is too small for the asked context x concurrency",)
    return "fits", 0, ()
