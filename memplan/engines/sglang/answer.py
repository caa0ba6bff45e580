"""From one rank's terms to the answer: lines with their intervals, the capacity, the verdict and its reasons.

A start-up passes three gates, each with its own margin: something must be left for the pools, the pools must hold the
asked requests, and what lies outside the fraction must fit into what the fraction leaves.
"""

from __future__ import annotations

from math import sqrt

from memplan.budget.kv_cache import model_token_bytes
from memplan.catalog.rules import Rules
from memplan.domain.budget import Group, KvCapacity, Line, MemoryBudget, Provenance
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.gates import Gate, room_for, shortfall_bytes, spread_line, worst_verdict
from memplan.engines.notes import input_notes
from memplan.engines.sglang.device import max_running
from memplan.engines.sglang.fitted import Fitted
from memplan.engines.sglang.rank import RankPlan
from memplan.engines.sglang.settings import SglangSettings
from memplan.records import dataclass
from memplan.units import GIB, MIB, ceil_div, format_gib

_FITTED = "catalog/engines/sglang_fitted.yaml"
_HOST_BASE_BYTES = 6 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far terms may be off at 90 %: half-widths in bytes."""

    before: int
    weights: int
    pool: int
    graphs: int
    activation: int

    @property
    def outside(self) -> int:
        """Of what has to fit outside the fraction."""
        return round(sqrt(self.before**2 + self.graphs**2 + self.activation**2))


def budget_of(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: SglangSettings,
    rules: Rules,
    fitted: Fitted,
    plan: RankPlan,
    unused: tuple[str, ...],
) -> MemoryBudget:
    """Return the whole budget of the tightest rank."""
    spread = _spread(spec, gpu, settings, fitted, plan)
    capacity = _capacity(spec, asked, settings, plan, spread)
    gates = _gates(settings, plan, spread, capacity)
    return MemoryBudget(
        model_name=spec.name,
        architecture=spec.architecture,
        parameters=spec.parameters,
        active_parameters=spec.active_parameters,
        weights_source=spec.weights_source,
        gpu_name=gpu.name,
        num_gpus=settings.ranks.num_gpus,
        gpu_memory_bytes=gpu.memory_bytes,
        engine_name="sglang",
        engine_version=rules.version,
        settings={**settings.as_dict(), **_shared_names(settings, plan, rules)},
        lines=_lines(gpu, settings, plan, spread, rules),
        kv=capacity,
        host_bytes=_HOST_BASE_BYTES * settings.ranks.num_gpus + settings.offload_bytes,
        verdict=worst_verdict(gates),
        shortfall_bytes=shortfall_bytes(gates),
        reasons=tuple(gate.reason for gate in gates if gate.verdict != "fits"),
        warnings=(*input_notes(spec, gpu), *_warnings(rules, settings, asked, plan, unused)),
        extra={"kv_available_bytes": plan.pool_bytes},
    )


def _shared_names(settings: SglangSettings, plan: RankPlan, rules: Rules) -> dict[str, object]:
    """The settings that all engines share, under the names that remedies look for."""
    return {
        "max_num_seqs": max_running(plan.tokens, settings, rules),
        "max_num_batched_tokens": settings.step_tokens,
        "enable_chunked_prefill": settings.chunk_tokens > 0,
        "max_model_len": settings.context_tokens,
        "gpu_memory_utilization": settings.mem_fraction,
        "enforce_eager": settings.graph_batch == 0,
    }


def _spread(spec: ModelSpec, gpu: GpuSpec, settings: SglangSettings, fitted: Fitted, plan: RankPlan) -> Spread:
    widths = fitted.intervals
    share = widths.weights
    if spec.quantization:
        share = widths.weights_int4 if "int4" in spec.quantization else widths.weights_quantized
    weights = round(plan.weights.total_bytes * share + widths.weights_mib * MIB)
    before = 0
    if not plan.before.is_given:
        ranks = settings.ranks.tensor * settings.ranks.pipeline
        before = round((widths.before_load_mib if ranks == 1 else widths.before_load_ranks_mib) * MIB)
        before += (gpu.visible_high_bytes - gpu.visible_low_bytes) // 2
    pool = sqrt((before * settings.mem_fraction) ** 2 + weights**2 + (widths.pool * max(0, plan.pool_bytes)) ** 2)
    graphs = plan.decode_graph_bytes + plan.prefill_graph_bytes
    return Spread(
        before=before,
        weights=weights,
        pool=round(pool),
        graphs=round(graphs * widths.cuda_graph + widths.cuda_graph_mib * MIB),
        activation=round(plan.activation_bytes * widths.activation),
    )


def _lines(gpu: GpuSpec, settings: SglangSettings, plan: RankPlan, spread: Spread, rules: Rules) -> tuple[Line, ...]:
    taken = max(0, gpu.memory_bytes - plan.before.available_bytes)
    lines = [
        spread_line(
            "context and communication" if not plan.before.is_given else "taken before loading",
            "non_torch",
            taken,
            spread.before,
            "modelled" if not plan.before.is_given else "measured",
            "device - available before loading",
            _FITTED if not plan.before.is_given else "given",
        )
    ]
    total = max(1, plan.weights.total_bytes)
    for name, size in plan.weights.parts.items():
        width = round(spread.weights * abs(size) / total)
        lines.append(spread_line(f"weights: {name}", "weights", size, width, "derived", *_weight_note(name)))
    used = plan.pools.used(plan.tokens, plan.pool_bytes)
    pooled = max(1, sum(used.values()))
    for name, size in used.items():
        width = round(spread.pool * size / pooled)
        formula = "available after loading - before x (1 - fraction)"
        lines.append(spread_line(name, "kv_cache", size, width, "derived", formula, "sglang model_runner.py"))
    return (*lines, *_outside_lines(settings, plan, spread, rules))


def _weight_note(name: str) -> tuple[str, str]:
    if name.startswith("unused"):
        return "segments of 2 and 20 MiB that the allocator cannot return", "memplan/budget/allocator.py"
    if name.startswith("modules"):
        return "device code of kernels on their first use", _FITTED
    return "elements kept on a rank x bits", "docs/memory-model.md, Weights"


def _outside_lines(settings: SglangSettings, plan: RankPlan, spread: Spread, rules: Rules) -> list[Line]:
    """What lies outside the fraction."""
    activation = max(0, plan.activation_bytes - plan.prefill_graph_bytes)
    graphs = plan.decode_graph_bytes + plan.prefill_graph_bytes
    parts: list[tuple[str, Group, int, int, Provenance, str, str]] = [
        (
            "request table",
            "outside_budget",
            plan.table_bytes,
            0,
            "derived",
            "(max_running_requests + 1) x (context + 4) x 4 bytes",
            rules.source("max_running_limit"),
        ),
        (
            "attention workspace",
            "outside_budget",
            plan.workspace_bytes,
            spread.graphs // 4,
            "modelled",
            "per GPU",
            _FITTED,
        ),
        (
            "CUDA graphs, decode",
            "cuda_graph",
            plan.decode_graph_bytes,
            round(spread.graphs * plan.decode_graph_bytes / max(1, graphs)),
            "modelled",
            "captured batches x layers",
            _FITTED,
        ),
        (
            "CUDA graphs, prefill",
            "cuda_graph",
            plan.prefill_graph_bytes,
            round(spread.graphs * plan.prefill_graph_bytes / max(1, graphs)),
            "modelled",
            "captured steps x layers",
            _FITTED,
        ),
        (
            "activation peak",
            "activation_peak",
            activation,
            spread.activation,
            "modelled",
            f"widest layer x {settings.step_tokens:,} tokens, and logits",
            "docs/memory-model.md, Activations",
        ),
    ]
    return [spread_line(*part) for part in parts if part[2]]


def _capacity(
    spec: ModelSpec, asked: ServingSettings, settings: SglangSettings, plan: RankPlan, spread: Spread
) -> KvCapacity:
    per_token = model_token_bytes(spec, settings.kv)
    pools = plan.pools
    if pools.is_empty:
        return KvCapacity(
            bytes_per_token=per_token,
            capacity_tokens=None,
            blocks=None,
            block_size=None,
            max_concurrency=None,
            max_context_tokens=spec.max_context_tokens,
            needed_bytes=0,
            needed_tokens=0,
        )
    groups = settings.ranks.attention_groups * settings.ranks.replicas
    share = ceil_div(asked.workload.concurrency, groups)
    # States come in whole slots, so a little less memory may be one slot less and more tokens.
    slot_tokens = round(pools.state_bytes / pools.token_bytes) if pools.state_bytes and pools.token_bytes else 0
    needed = pools.needed_bytes(asked.kept_tokens(settings.context_tokens), share, settings.step_tokens)
    return KvCapacity(
        bytes_per_token=per_token,
        capacity_tokens=plan.tokens,
        blocks=plan.tokens // settings.page_size,
        block_size=settings.page_size,
        max_concurrency=_max_concurrency(asked, settings, plan, groups),
        max_context_tokens=_max_context(spec, asked, settings, plan),
        needed_bytes=needed,
        needed_tokens=settings.context_tokens * asked.workload.concurrency,
        low_tokens=max(0, pools.tokens(plan.pool_bytes - spread.pool) - slot_tokens),
        high_tokens=pools.tokens(plan.pool_bytes + spread.pool) + slot_tokens,
    )


def _max_concurrency(asked: ServingSettings, settings: SglangSettings, plan: RankPlan, groups: int) -> float:
    """Requests of the full context that the pools hold: by pages, and by slots where there are states."""
    pools, context, step = plan.pools, asked.kept_tokens(settings.context_tokens), settings.step_tokens
    share = plan.tokens / (ceil_div(context, pools.page_size) * pools.page_size)
    if pools.state_bytes:
        share = min(share, pools.slots(plan.pool_bytes) / pools.slots_per_request)
    return room_for(
        lambda requests: pools.needed_bytes(context, requests, step) <= plan.pool_bytes, share, groups=groups
    )


def _max_context(spec: ModelSpec, asked: ServingSettings, settings: SglangSettings, plan: RankPlan) -> int:
    low, high = 0, max(spec.max_context_tokens, settings.context_tokens)
    while low < high:
        middle = (low + high + 1) // 2
        fits = plan.pools.needed_bytes(asked.kept_tokens(middle), 1, settings.step_tokens) <= plan.pool_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _gates(settings: SglangSettings, plan: RankPlan, spread: Spread, capacity: KvCapacity) -> list[Gate]:
    gates = [
        Gate(
            margin_bytes=plan.pool_bytes,
            spread_bytes=spread.pool,
            reason="the weights leave nothing for the cache under mem_fraction_static",
        )
    ]
    if capacity.needed_bytes:
        gates.append(
            Gate(
                margin_bytes=plan.pool_bytes - capacity.needed_bytes,
                spread_bytes=spread.pool,
                reason="the cache is too small for the asked context x concurrency",
            )
        )
    left = round(plan.before.available_bytes * (1 - settings.mem_fraction))
    wanted = plan.table_bytes + plan.workspace_bytes + plan.decode_graph_bytes
    wanted += max(plan.activation_bytes, plan.prefill_graph_bytes)
    gates.append(
        Gate(
            margin_bytes=left - wanted,
            spread_bytes=spread.outside,
            reason=f"mem_fraction_static leaves {format_gib(left)} for graphs and activations of {format_gib(wanted)}",
        )
    )
    return gates


def _warnings(
    rules: Rules, settings: SglangSettings, asked: ServingSettings, plan: RankPlan, unused: tuple[str, ...]
) -> tuple[str, ...]:
    warnings = []
    if not rules.is_known:
        warnings.append(f"SGLang {rules.version} is not in the rule table; the nearest known release was used")
    running = max_running(plan.tokens, settings, rules) * settings.ranks.attention_groups * settings.ranks.replicas
    if asked.workload.concurrency > running:
        warnings.append(f"SGLang runs at most {running} requests at once here; the others wait")
    if unused:
        warnings.append(f"options that the estimate does not depend on: {', '.join(unused)}")
    return tuple(warnings)
