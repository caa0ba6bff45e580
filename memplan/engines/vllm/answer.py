"""From one rank's terms to the answer: lines with their intervals, the cache's capacity, the verdict and its reasons.

A start-up passes four gates, each with its own margin: the weights must load, the memory that utilization asks for
must be free, the cache must hold the asked requests, and what was never charged must fit into what utilization left
over.
"""

from __future__ import annotations

from memplan.budget.kv_cache import model_token_bytes
from memplan.catalog.rules import Rules
from memplan.domain.budget import Group, KvCapacity, Line, MemoryBudget, Provenance
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.gates import Gate, worst_verdict
from memplan.engines.notes import input_notes
from memplan.engines.vllm.fitted import Fitted
from memplan.engines.vllm.intervals import Intervals, Width, intervals_of
from memplan.engines.vllm.kv_groups import CacheGroups
from memplan.engines.vllm.length import held_back_blocks
from memplan.engines.vllm.rank import RankPlan
from memplan.engines.vllm.settings import VllmSettings
from memplan.units import GIB, ceil_div, format_gib

_HOST_BASE_BYTES = 4 * GIB
_NCCL_GRAPHS_BYTES = 3 * GIB
_FITTED = "catalog/engines/vllm_fitted.yaml"


def budget_of(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: VllmSettings,
    rules: Rules,
    fitted: Fitted,
    plan: RankPlan,
    unused: tuple[str, ...],
) -> MemoryBudget:
    """Return the whole budget of the tightest rank."""
    widths = intervals_of(spec, gpu, asked, settings, rules.release, fitted, plan)
    capacity = _capacity(spec, asked, settings, rules, plan, widths.kv)
    gates = _gates(gpu, asked, settings, rules, plan, widths, capacity)
    worst = min(gates, key=lambda gate: gate.margin_bytes - gate.spread_bytes)
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
        lines=_lines(plan, widths, settings, rules),
        kv=capacity,
        host_bytes=_HOST_BASE_BYTES * settings.layout.num_ranks + asked.weight_offload_bytes,
        verdict=worst_verdict(gates),
        shortfall_bytes=max(0, -worst.margin_bytes),
        reasons=tuple(gate.reason for gate in gates if gate.verdict != "fits"),
        warnings=_warnings(spec, rules, gpu, settings, unused),
        extra={"kv_available_bytes": plan.kv_bytes, "cuda_graph_estimate_bytes": plan.graphs.estimate_bytes},
    )


def _lines(plan: RankPlan, widths: Intervals, settings: VllmSettings, rules: Rules) -> tuple[Line, ...]:
    lines = _weight_lines(plan, widths.weights)
    peak = plan.activation
    lines.append(
        _line(
            "activation peak",
            "activation_peak",
            peak.size_bytes,
            widths.activation,
            "modelled",
            f"{peak.formula}, set by the {peak.cause}",
            "docs/memory-model.md, Activations",
        )
    )
    lines.append(
        _line(
            "outside torch, charged",
            "non_torch",
            plan.outside.charged_bytes,
            widths.outside,
            "modelled",
            f"libraries and NCCL, accounting `{_accounting(settings, rules)}`",
            _FITTED,
        )
    )
    graphs = plan.graphs
    if graphs.charged_bytes:
        note = f"{graphs.count} graphs, estimated and charged; they hold {format_gib(graphs.held_bytes)}"
        lines.append(_line("CUDA graphs", "cuda_graph", graphs.charged_bytes, widths.graphs, "modelled", note, _FITTED))
    elif graphs.held_bytes:
        note = f"{graphs.count} graphs, outside the budget"
        lines.append(_line("CUDA graphs", "cuda_graph", graphs.held_bytes, widths.graphs, "modelled", note, _FITTED))
    lines.append(
        _line(
            "KV cache",
            "kv_cache",
            max(0, plan.kv_bytes),
            widths.kv,
            "derived",
            "utilization x device - all that is charged"
            if settings.kv_cache_memory_bytes is None
            else "given by --kv-cache-memory",
            rules.source("utilization"),
        )
    )
    uncharged = plan.outside.uncharged_bytes
    if uncharged > 0:
        lines.append(
            _line(
                "outside the budget",
                "outside_budget",
                uncharged,
                widths.outside,
                "modelled",
                "CUDA context and NCCL that no release charges",
                _FITTED,
            )
        )
    return tuple(lines)


def _weight_lines(plan: RankPlan, width: Width) -> list[Line]:
    """One line per role, and one for what the allocator and the engine add; the interval is spread over them."""
    parts = [(f"weights: {role.value}", size) for role, size in plan.weights.by_role.items()]
    extras = plan.extras
    parts += [
        ("weights: absorbed latent projections", extras.absorbed_bytes),
        ("weights: LoRA slots", extras.lora_bytes),
        ("weights: draft model", extras.draft_bytes),
        ("weights: padding and what it left", plan.padding.charged_bytes),
    ]
    named = sum(size for _, size in parts)
    rounding = plan.weight_bytes - named
    if rounding >= 0:
        parts.append(("weights: rotary tables, rounding", rounding))
    else:
        parts.append(("weights: offloaded to the host", rounding))
    total = max(1, plan.weight_bytes)
    return [
        _line(
            name,
            "weights",
            size,
            _part(width, abs(size) / total),
            "derived",
            "elements kept on a rank x bits" if not name.endswith("rounding") else "positions x width; torch's blocks",
            "docs/memory-model.md, Weights",
        )
        for name, size in parts
        if size
    ]


def _part(width: Width, share: float) -> Width:
    return Width(below_bytes=round(width.below_bytes * share), above_bytes=round(width.above_bytes * share))


def _line(name: str, group: Group, size: int, width: Width, provenance: Provenance, formula: str, source: str) -> Line:
    low = size - width.below_bytes
    return Line(
        name=name,
        group=group,
        size_bytes=size,
        low_bytes=max(0, low) if size >= 0 else low,
        high_bytes=size + width.above_bytes,
        provenance=provenance,
        formula=formula,
        source=source,
    )


def _accounting(settings: VllmSettings, rules: Rules) -> str:
    return str(rules["accounting_v1"] if settings.generation == "v1" else rules["accounting"])


def _capacity(
    spec: ModelSpec,
    asked: ServingSettings,
    settings: VllmSettings,
    rules: Rules,
    plan: RankPlan,
    width: Width,
) -> KvCapacity:
    groups = plan.groups
    per_token = model_token_bytes(spec, settings.kv)
    concurrency = asked.workload.concurrency
    if groups is None:
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
    per_request = groups.blocks_of(asked.kept_tokens(settings.context_tokens))
    per_line = groups.printed_blocks_of(asked.kept_tokens(settings.context_tokens))
    per_replica = -(-concurrency // settings.layout.data)
    held_back = held_back_blocks(settings, rules)
    queues = settings.layout.pipeline if rules["splits_by_stage"] and settings.generation == "v0" else 1
    needed_blocks = per_request * ceil_div(per_replica, queues) * queues + held_back
    low, high = (
        _printed_tokens(groups, max(0, plan.kv_bytes + shift) // groups.block_bytes, settings, rules)
        for shift in (-width.below_bytes, width.above_bytes)
    )
    return KvCapacity(
        bytes_per_token=per_token,
        capacity_tokens=_printed_tokens(groups, plan.blocks, settings, rules),
        blocks=plan.blocks,
        block_size=groups.block_size,
        max_concurrency=round(plan.blocks / per_line * settings.layout.data, 2),  # as vLLM prints it
        max_context_tokens=asked.longest_kept(
            groups.max_tokens(max(0, plan.blocks // queues - held_back), spec.max_context_tokens),
            spec.max_context_tokens,
        ),
        needed_bytes=needed_blocks * groups.block_bytes,
        needed_tokens=settings.context_tokens * concurrency,
        low_tokens=low,
        high_tokens=high,
        groups=groups.pool_groups(),
        held_back_blocks=1 if settings.generation == "v1" else 0,  # the null block
    )


def _printed_tokens(groups: CacheGroups, blocks: int, settings: VllmSettings, rules: Rules) -> int:
    """What this release's log line says for its cache."""
    if settings.generation == "v0" or rules["printed_tokens"] == "blocks":
        return blocks // len(groups.groups) * groups.printed_block_size(settings.context_tokens)
    return int(blocks / groups.printed_blocks_of(settings.context_tokens) * settings.context_tokens)


def _gates(
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: VllmSettings,
    rules: Rules,
    plan: RankPlan,
    widths: Intervals,
    capacity: KvCapacity,
) -> list[Gate]:
    free = min(gpu.memory_bytes, asked.gpu_free_bytes or gpu.memory_bytes)
    context = plan.outside.context_bytes
    gates = [
        Gate(
            margin_bytes=free - context - plan.load_bytes,
            spread_bytes=widths.weights.half_bytes,
            reason=f"the weights take {format_gib(plan.load_bytes)} of {format_gib(free - context)} that are free"
            + (" while they load" if plan.load_bytes > plan.weight_bytes else ""),
        )
    ]
    if settings.kv_cache_memory_bytes is None and _checks_free_memory(settings, rules):
        gates.append(
            Gate(
                margin_bytes=free - context - plan.requested_bytes,
                spread_bytes=widths.memory_bytes // 4,
                reason=f"utilization {settings.utilization:g} asks for {format_gib(plan.requested_bytes)},"
                f" {format_gib(free - context)} are free at start",
            )
        )
    counted = settings.kv_cache_memory_bytes is None and _counts_others(settings, rules)
    # A length that follows the cache never misses it.
    needed = 0 if settings.fitted_length and asked.workload.concurrency == 1 else capacity.needed_bytes
    gates.append(_cache_gate(plan, widths.rest, needed, gpu.memory_bytes - free if counted else 0))
    return [*gates, *_slack_gates(gpu, settings, plan, widths, free)]


def _slack_gates(gpu: GpuSpec, settings: VllmSettings, plan: RankPlan, widths: Intervals, free: int) -> list[Gate]:
    """What was never charged must fit beside the budget: when the server starts, and with the peak of a request."""
    if plan.kv_bytes <= 0:
        return []
    graphs = max(0, plan.graphs.held_bytes - plan.graphs.charged_bytes)
    held = plan.charged_bytes + max(0, plan.kv_bytes) + plan.outside.uncharged_bytes + graphs
    at_start = held - plan.activation.size_bytes
    spread = max(widths.graphs.half_bytes // 2, widths.outside.half_bytes // 4) if settings.utilization > 0.9 else 0
    if graphs and _reduces_by_nccl(gpu, settings):
        spread = max(spread, _NCCL_GRAPHS_BYTES * settings.layout.tensor // 8 - graphs)
    return [
        Gate(
            margin_bytes=free - at_start,
            spread_bytes=(widths.graphs.half_bytes if graphs else 0) + widths.outside.half_bytes // 2,
            reason=f"{format_gib(at_start)} would be held at start, of {format_gib(free)}"
            + (": capturing CUDA graphs would run out of memory" if graphs else ""),
        ),
        Gate(
            margin_bytes=free - held,
            spread_bytes=spread,
            reason=f"{format_gib(held)} would be held in all, of {format_gib(free)}: the first request"
            + (" or capturing CUDA graphs" if graphs else "")
            + " may run out of memory",
            stops=False,
        ),
    ]


def _reduces_by_nccl(gpu: GpuSpec, settings: VllmSettings) -> bool:
    """Whether V0's graphs hold NCCL's collectives: its own all-reduce wants NVLink for more than two GPUs.

    Source: vllm/distributed/device_communicators/custom_all_reduce.py. The start-up log reckons with 1 to 3 GiB, which
    is taken for 8 GPUs.
    """
    has_link = "nvl" in (gpu.interconnect or "").lower()
    return settings.generation == "v0" and gpu.vendor == "nvidia" and settings.layout.tensor > 2 and not has_link


def _cache_gate(plan: RankPlan, width: Width, needed_bytes: int, others: int) -> Gate:
    """The cache must hold the asked requests; `others` is memory of other processes that the release counts as its
    own. Where it does, what is in doubt is how much less may be left, else how much more.
    """
    available = plan.kv_bytes - others
    if available <= 0:
        reason = f"{format_gib(-available)} are missing before any KV cache"
    else:
        reason = f"the KV cache gets {format_gib(available)}, the requests need {format_gib(needed_bytes)}"
    margin = available - needed_bytes
    return Gate(
        margin_bytes=margin, spread_bytes=width.below_bytes if margin >= 0 else width.above_bytes, reason=reason
    )


def _checks_free_memory(settings: VllmSettings, rules: Rules) -> bool:
    """From 0.9.1 on the worker refuses to start unless the requested memory is free."""
    return settings.generation == "v1" and rules["accounting_v1"] != "allocated"


def _counts_others(settings: VllmSettings, rules: Rules) -> bool:
    """Releases that take everything outside torch for their own also count other processes' memory."""
    accounting = _accounting(settings, rules)
    return accounting in ("device", "allocated")


def _warnings(
    spec: ModelSpec, rules: Rules, gpu: GpuSpec, settings: VllmSettings, unused: tuple[str, ...]
) -> tuple[str, ...]:
    warnings = list(input_notes(spec, gpu))
    if not rules.is_known:
        warnings.append(f"vLLM {rules.version} is outside the known releases; the nearest rules are used")
    if settings.fitted_length:
        whole = "all that the model can do" if settings.context_tokens >= spec.max_context_tokens else "what fits"
        warnings.append(f"max-model-len auto: {settings.context_tokens:,} tokens, {whole}")
    if unused:
        warnings.append(f"options that the estimate does not depend on: {', '.join(unused)}")
    return tuple(warnings)
