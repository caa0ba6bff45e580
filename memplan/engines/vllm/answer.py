"""From one rank's terms to the answer: lines with their intervals, the cache's capacity, the verdict and its reasons.

A start-up passes four gates, each with its own margin: the weights must load, the memory that utilization asks for
must be free, the cache must hold the asked requests, and what was never charged must fit into what utilization left
over.
"""

from __future__ import annotations

from math import sqrt

from memplan.budget.kv_cache import model_token_bytes
from memplan.catalog.rules import Rules
from memplan.domain.budget import Group, KvCapacity, Line, MemoryBudget, Provenance, Verdict
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.vllm.engine import RankPlan
from memplan.engines.vllm.fitted import Fitted
from memplan.engines.vllm.kv_groups import CacheGroups
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass
from memplan.units import GIB, MIB, format_gib

_HOST_BASE_BYTES = 4 * GIB
_FITTED = "catalog/engines/vllm_fitted.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far terms may be off at 90 %: half-widths in bytes, and of their sum."""

    weights: int
    activation: int
    outside: int
    graphs: int
    memory: int
    kv: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One condition of starting: by how many bytes it is met, and how sure that is."""

    margin_bytes: int
    spread_bytes: int
    reason: str

    @property
    def verdict(self) -> Verdict:
        if self.margin_bytes < -self.spread_bytes:
            return "does_not_fit"
        return "fits" if self.margin_bytes >= self.spread_bytes else "tight"


def budget_of(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: VllmSettings,
    rules: Rules,
    fitted: Fitted,
    plan: RankPlan,
) -> MemoryBudget:
    """Return the whole budget of the tightest rank."""
    spread = _spread(spec, gpu, settings, fitted, plan)
    capacity = _capacity(spec, asked, settings, rules, plan, spread)
    gates = _gates(gpu, asked, settings, rules, plan, spread, capacity)
    worst = min(gates, key=lambda gate: gate.margin_bytes - gate.spread_bytes)
    verdict = _worst_verdict(gates)
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
        lines=_lines(plan, spread, settings, rules),
        kv=capacity,
        host_bytes=_HOST_BASE_BYTES * settings.layout.num_ranks + asked.weight_offload_bytes,
        verdict=verdict,
        shortfall_bytes=max(0, -worst.margin_bytes),
        reasons=tuple(gate.reason for gate in gates if gate.verdict != "fits"),
        warnings=_warnings(spec, rules, gpu),
        extra={"kv_available_bytes": plan.kv_bytes},
    )


def _worst_verdict(gates: list[Gate]) -> Verdict:
    verdicts = {gate.verdict for gate in gates}
    if "does_not_fit" in verdicts:
        return "does_not_fit"
    return "tight" if "tight" in verdicts else "fits"


def _spread(spec: ModelSpec, gpu: GpuSpec, settings: VllmSettings, fitted: Fitted, plan: RankPlan) -> Spread:
    widths = fitted.intervals
    share = widths.weights_quantized if spec.quantization else widths.weights
    weights = round(plan.weight_bytes * share)
    by_cause = {
        "sampler": widths.activation_sampler,
        "forward pass": widths.activation_forward,
        "media tower": widths.activation_media,
    }
    activation = round(plan.activation.size_bytes * by_cause[plan.activation.cause] + widths.activation_mib * MIB)
    ranks = settings.layout.tensor * settings.layout.pipeline
    outside = round((widths.non_torch_mib if ranks == 1 else widths.non_torch_ranks_mib) * MIB)
    graphs = round(max(plan.graphs.charged_bytes, plan.graphs.held_bytes) * widths.cuda_graph)
    memory = round((gpu.visible_high_bytes - gpu.visible_low_bytes) / 2 * settings.utilization)
    charged = (weights, activation, outside, memory, graphs if plan.graphs.charged_bytes else 0)
    return Spread(
        weights=weights,
        activation=activation,
        outside=outside,
        graphs=graphs,
        memory=memory,
        kv=round(sqrt(sum(term**2 for term in charged))),
    )


def _lines(plan: RankPlan, spread: Spread, settings: VllmSettings, rules: Rules) -> tuple[Line, ...]:
    lines = _weight_lines(plan, spread)
    peak = plan.activation
    lines.append(
        _line(
            "activation peak",
            "activation_peak",
            peak.size_bytes,
            spread.activation,
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
            spread.outside,
            "modelled",
            f"libraries and NCCL, accounting `{_accounting(settings, rules)}`",
            _FITTED,
        )
    )
    graphs = plan.graphs
    if graphs.charged_bytes:
        note = f"{graphs.count} graphs, estimated and charged; they hold {format_gib(graphs.held_bytes)}"
        lines.append(_line("CUDA graphs", "cuda_graph", graphs.charged_bytes, spread.graphs, "modelled", note, _FITTED))
    elif graphs.held_bytes:
        note = f"{graphs.count} graphs, outside the budget"
        lines.append(_line("CUDA graphs", "cuda_graph", graphs.held_bytes, spread.graphs, "modelled", note, _FITTED))
    lines.append(
        _line(
            "KV cache",
            "kv_cache",
            max(0, plan.kv_bytes),
            spread.kv if settings.kv_cache_memory_bytes is None else 0,
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
                spread.outside,
                "modelled",
                "CUDA context and NCCL that no release charges",
                _FITTED,
            )
        )
    return tuple(lines)


def _weight_lines(plan: RankPlan, spread: Spread) -> list[Line]:
    """One line per role, and one for what the allocator and the engine add; the interval is spread over them."""
    parts = [(f"weights: {role.value}", size) for role, size in plan.weights.by_role.items()]
    extras = plan.extras
    parts += [
        ("weights: absorbed latent projections", extras.absorbed_bytes),
        ("weights: LoRA slots", extras.lora_bytes),
        ("weights: draft model", extras.draft_bytes),
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
            round(spread.weights * abs(size) / total),
            "derived",
            "elements kept on a rank x bits" if not name.endswith("rounding") else "positions x width; torch's blocks",
            "docs/memory-model.md, Weights",
        )
        for name, size in parts
        if size
    ]


def _line(name: str, group: Group, size: int, spread: int, provenance: Provenance, formula: str, source: str) -> Line:
    return Line(
        name=name,
        group=group,
        size_bytes=size,
        low_bytes=max(0, size - spread) if size >= 0 else size - spread,
        high_bytes=size + spread,
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
    spread: Spread,
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
    per_request = groups.blocks_of(settings.context_tokens)
    per_replica = -(-concurrency // settings.layout.data)
    needed_blocks = round(per_request * per_replica * asked.kv_keep_fraction) + _held_back(settings)
    low, high = (
        _printed_tokens(groups, max(0, plan.kv_bytes + sign * spread.kv) // groups.block_bytes, settings, rules)
        for sign in (-1, 1)
    )
    return KvCapacity(
        bytes_per_token=per_token,
        capacity_tokens=_printed_tokens(groups, plan.blocks, settings, rules),
        blocks=plan.blocks,
        block_size=groups.block_size,
        max_concurrency=round(plan.blocks / per_request * settings.layout.data, 2),
        max_context_tokens=groups.max_tokens(max(0, plan.blocks - _held_back(settings)), spec.max_context_tokens),
        needed_bytes=needed_blocks * groups.block_bytes,
        needed_tokens=settings.context_tokens * concurrency,
        low_tokens=low,
        high_tokens=high,
    )


def _held_back(settings: VllmSettings) -> int:
    """V1 keeps one null block out of use."""
    return 1 if settings.generation == "v1" else 0


def _printed_tokens(groups: CacheGroups, blocks: int, settings: VllmSettings, rules: Rules) -> int:
    """What this release's log line says for its cache."""
    if settings.generation == "v0" or rules["printed_tokens"] == "blocks":
        return blocks // len(groups.pages) * groups.block_size
    return int(blocks / groups.blocks_of(settings.context_tokens) * settings.context_tokens)


def _gates(
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: VllmSettings,
    rules: Rules,
    plan: RankPlan,
    spread: Spread,
    capacity: KvCapacity,
) -> list[Gate]:
    free = min(gpu.memory_bytes, asked.gpu_free_bytes or gpu.memory_bytes)
    context = plan.outside.context_bytes
    gates = [
        Gate(
            margin_bytes=free - context - plan.load_bytes,
            spread_bytes=spread.weights,
            reason=f"the weights take {format_gib(plan.load_bytes)} of {format_gib(free - context)} that are free"
            + (" while they load" if plan.load_bytes > plan.weight_bytes else ""),
        )
    ]
    if settings.kv_cache_memory_bytes is None and _checks_free_memory(settings, rules):
        gates.append(
            Gate(
                margin_bytes=free - context - plan.requested_bytes,
                spread_bytes=spread.memory // 4,
                reason=f"utilization {settings.utilization:g} asks for {format_gib(plan.requested_bytes)},"
                f" {format_gib(free - context)} are free at start",
            )
        )
    if settings.kv_cache_memory_bytes is None:
        others = gpu.memory_bytes - free if _counts_others(settings, rules) else 0
        gates.append(_cache_gate(plan, spread, capacity, others))
    else:
        gates.append(
            _cache_gate(plan, Spread(weights=0, activation=0, outside=0, graphs=0, memory=0, kv=0), capacity, 0)
        )
    graphs = max(0, plan.graphs.held_bytes - plan.graphs.charged_bytes)
    held = plan.charged_bytes + max(0, plan.kv_bytes) + plan.outside.uncharged_bytes + graphs
    gates.append(
        Gate(
            margin_bytes=free - held,
            spread_bytes=max(spread.graphs // 2, spread.outside // 4) if settings.utilization > 0.9 else 0,
            reason=f"{format_gib(held)} would be held in all, of {format_gib(free)}: CUDA graphs or the first request"
            " would run out of memory",
        )
    )
    return gates


def _cache_gate(plan: RankPlan, spread: Spread, capacity: KvCapacity, others: int) -> Gate:
    """The cache must hold the asked requests; `others` is memory of other processes that the release counts as its
    own.
    """
    available = plan.kv_bytes - others
    if available <= 0:
        reason = f"{format_gib(-available)} are missing before any KV cache"
    else:
        reason = f"the KV cache gets {format_gib(available)}, the requests need {format_gib(capacity.needed_bytes)}"
    return Gate(margin_bytes=available - capacity.needed_bytes, spread_bytes=spread.kv, reason=reason)


def _checks_free_memory(settings: VllmSettings, rules: Rules) -> bool:
    """From 0.9.1 on the worker refuses to start unless the requested memory is free."""
    return settings.generation == "v1" and rules["accounting_v1"] != "allocated"


def _counts_others(settings: VllmSettings, rules: Rules) -> bool:
    """Releases that take everything outside torch for their own also count other processes' memory."""
    accounting = _accounting(settings, rules)
    return accounting in ("device", "allocated")


def _warnings(spec: ModelSpec, rules: Rules, gpu: GpuSpec) -> tuple[str, ...]:
    warnings = list(spec.notes)
    if not rules.is_known:
        warnings.append(f"vLLM {rules.version} is outside the known releases; the nearest rules are used")
    if gpu.resolved_note:
        warnings.append(gpu.resolved_note)
    return tuple(warnings)
