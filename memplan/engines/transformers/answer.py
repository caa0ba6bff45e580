"""From devices to the answer: lines with their intervals, how long and how many requests have room, the verdict.

A run passes two gates on every GPU: the weights must load, with what loading needs beside them, and the fullest moment
of `generate` must fit. Layers on the host never make a run fail; they make it slow, which the answer says.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from memplan.budget.storage import checkpoint_bytes
from memplan.catalog.rules import Rules
from memplan.domain.budget import Group, KvCapacity, Line, MemoryBudget, Provenance, Verdict
from memplan.domain.correction import Correction
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.engines.gates import Gate, shortfall_bytes, spread_line, worst_verdict
from memplan.engines.notes import input_notes
from memplan.engines.transformers.caches import model_token_bytes
from memplan.engines.transformers.families import Family
from memplan.engines.transformers.fitted import Fitted
from memplan.engines.transformers.host import host_bytes
from memplan.engines.transformers.loading import LoadedModel
from memplan.engines.transformers.placement import DISK
from memplan.engines.transformers.plan import DevicePlan, Placed
from memplan.engines.transformers.settings import TransformersSettings
from memplan.engines.transformers.spill import (
    describe_placement,
    describe_spill,
    layers_by_device,
    needs_folder,
    refuses_spill,
)
from memplan.records import dataclass
from memplan.units import GIB, MIB, format_gib

_FITTED = "catalog/engines/transformers_fitted.yaml"
_DOCS = "docs/engines/transformers.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One question and what was found for it. `room` returns the bytes left on the tightest GPU at another context
    and concurrency.
    """

    source: ModelSpec
    loaded: LoadedModel
    gpu: GpuSpec
    free_bytes: int
    settings: TransformersSettings
    family: Family
    rules: Rules
    fitted: Fitted
    placed: Placed
    plans: list[DevicePlan]
    unused: tuple[str, ...]
    room: Callable[[int, int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far terms may be off at 90 %: half-widths in bytes."""

    weights: int
    activation: int
    cache: int
    fragments: int
    context: int

    @property
    def total(self) -> int:
        parts = (self.weights, self.activation, self.cache, self.fragments, self.context)
        return round(sqrt(sum(part**2 for part in parts)))


def budget_of(run: Run) -> MemoryBudget:
    """Return the whole budget of the GPU that is fullest."""
    plan = max(run.plans, key=lambda one: one.used_bytes)
    spread = _spread(run, plan)
    gates = _gates(run)
    spec = run.source
    return MemoryBudget(
        model_name=spec.name,
        architecture=spec.architecture,
        parameters=spec.parameters,
        active_parameters=spec.active_parameters,
        weights_source=spec.weights_source,
        gpu_name=run.gpu.name,
        num_gpus=run.settings.num_gpus,
        gpu_memory_bytes=run.gpu.memory_bytes,
        engine_name="transformers",
        engine_version=run.rules.version,
        settings=run.settings.as_dict(),
        lines=_lines(run, plan, spread),
        kv=_capacity(run, plan),
        host_bytes=host_bytes(run.loaded.spec, checkpoint_bytes(spec), run.placed, run.settings, run.rules, run.fitted),
        verdict=_verdict(run, gates),
        shortfall_bytes=shortfall_bytes(gates),
        reasons=_reasons(run, gates),
        warnings=_warnings(run),
        extra={
            "kv_available_bytes": run.free_bytes - plan.used_bytes + plan.final_cache_bytes,
            "spilled_bytes": run.placed.spilled_bytes,
            "placement": layers_by_device(run.placed, run.plans),
        },
    )


def _verdict(run: Run, gates: list[Gate]) -> Verdict:
    """A run with layers on the host is never better than tight; layers on disk need a folder to be put in."""
    verdict = worst_verdict(gates)
    if verdict == "fits" and run.placed.spilled_bytes:
        return "tight"
    return verdict


def _reasons(run: Run, gates: list[Gate]) -> tuple[str, ...]:
    reasons = [gate.reason for gate in gates if gate.verdict != "fits"]
    spilled = describe_spill(run.placed)
    if spilled:
        reasons.append(spilled)
    room = _room_on_gpus(run, gates)
    return (*reasons, *([room] if room else []))


def _room_on_gpus(run: Run, gates: list[Gate]) -> str:
    """How to keep room on GPUs that are filled with weights to the brim, where other weights lie on the host anyway."""
    missing = shortfall_bytes(gates)
    placed = [size for device, size in run.placed.sizes.items() if isinstance(device, int)]
    if not run.placed.spilled_bytes or not missing or not placed or run.loaded.spec.quantization:
        return ""
    size = (max(placed) - missing) // GIB
    return f"--set max_memory={size}GiB would leave room on each GPU, with more on the host" if size > 0 else ""


def _gates(run: Run) -> list[Gate]:
    gates = []
    for plan in run.plans:
        spread = _spread(run, plan)
        name = f"GPU {plan.holding.number}" if len(run.plans) > 1 else "the GPU"
        loading = plan.fixed_bytes - plan.workspace_bytes + plan.holding.load_transient_bytes
        gates.append(
            Gate(
                margin_bytes=run.free_bytes - loading,
                spread_bytes=spread.weights + spread.context,
                reason=f"loading takes {format_gib(loading)} of {format_gib(run.free_bytes)} on {name}",
            )
        )
        gates.append(
            Gate(
                margin_bytes=run.free_bytes - plan.used_bytes,
                spread_bytes=spread.total,
                reason=f"the {plan.peak.phase} takes {format_gib(plan.used_bytes)} of {format_gib(run.free_bytes)} on"
                f" {name}, at its fullest in the {plan.peak.moment.name}",
            )
        )
    refusal = refuses_spill(run.loaded.spec, run.placed, run.rules)
    if refusal:
        gates.append(Gate(margin_bytes=-run.placed.spilled_bytes, spread_bytes=0, reason=refusal))
    if needs_folder(run.loaded.spec, run.placed, run.settings, run.rules):
        size = format_gib(run.placed.sizes[DISK])
        reason = f"{size} of weights would have to be written to disk, and no offload_folder is named"
        gates.append(Gate(margin_bytes=-run.placed.sizes[DISK], spread_bytes=0, reason=reason))
    return gates


def _spread(run: Run, plan: DevicePlan) -> Spread:
    widths = run.fitted.intervals
    share = widths.weights_quantized if run.loaded.spec.quantization else widths.weights
    moment = plan.peak.kept_bytes + plan.peak.moment.size_bytes
    activations = run.settings.correction("activations", plan.peak.phase)
    fragments = run.settings.correction("fragments", plan.peak.phase)
    usual = min(widths.fragments, run.fitted.fragments) / run.fitted.fragments
    return Spread(
        weights=round(plan.holding.weight_bytes * share),
        activation=round(moment * (activations.half_width(widths.activation) if activations else widths.activation)),
        cache=round(plan.peak.cache_bytes * widths.cache),
        fragments=round(plan.fragment_bytes * (fragments.half_width(usual) if fragments else usual)),
        context=round(widths.context_mib * MIB),
    )


def _lines(run: Run, plan: DevicePlan, spread: Spread) -> tuple[Line, ...]:
    peak = plan.peak
    activations = run.settings.correction("activations", peak.phase)
    fragments = run.settings.correction("fragments", peak.phase)
    total = max(1, plan.holding.weight_bytes)
    parts = [(f"weights: {role.value}", size) for role, size in plan.holding.by_role.items()]
    parts.append(("weights: rounding of segments", plan.holding.weight_bytes - sum(size for _, size in parts)))
    parts.append(("weights: LoRA adapters", plan.holding.adapter_bytes))
    parts.append(("weights: assistant model and its cache", plan.holding.draft_bytes))
    lines = [
        _line(
            name,
            "weights",
            size,
            round(spread.weights * size / total),
            "derived",
            "elements x bits",
            f"{_DOCS}, Weights",
        )
        for name, size in parts
        if size > 0
    ]
    lines.append(
        _line(
            "kept through a pass",
            "activation_peak",
            peak.kept_bytes,
            0,
            "derived",
            "embedded tokens, rotary tables, masks",
            f"{_DOCS}, Passes",
        )
    )
    lines.append(
        _line(
            f"{peak.phase}: {peak.moment.name}",
            "activation_peak",
            peak.moment.size_bytes,
            spread.activation,
            _known(activations, "derived"),
            peak.moment.working,
            f"{_DOCS}, Passes",
        )
    )
    lines.append(
        _line(
            "allocator fragments",
            "activation_peak",
            plan.fragment_bytes,
            spread.fragments,
            _known(fragments, "modelled"),
            "left between live blocks of torch's segments",
            _FITTED,
        )
    )
    lines.append(
        _line(
            "KV cache",
            "kv_cache",
            peak.cache_bytes,
            spread.cache,
            "derived",
            _cache_working(run, peak.phase),
            f"{_DOCS}, Caches",
        )
    )
    lines.append(_line("cuBLAS workspace", "non_torch", plan.workspace_bytes, 0, "derived", "one per device", _FITTED))
    lines.append(
        _line(
            "CUDA context", "non_torch", plan.context_bytes, spread.context, "modelled", "context and kernels", _FITTED
        )
    )
    return tuple(lines)


def _known(shown: Correction | None, usually: Provenance) -> Provenance:
    """How a term is known once profiles have shown it."""
    return usually if shown is None else "measured" if shown.is_measured else "modelled"


def _line(name: str, group: Group, size: int, spread: int, provenance: Provenance, formula: str, source: str) -> Line:
    return spread_line(name, group, size, spread, provenance, formula, source)


def _cache_working(run: Run, phase: str) -> str:
    settings = run.settings
    tokens = settings.prompt_tokens if phase == "prefill" and settings.cache == "dynamic" else settings.context_tokens
    return f"{settings.cache}, {settings.sequences} x {tokens:,} tokens"


def _capacity(run: Run, plan: DevicePlan) -> KvCapacity:
    """What would fit in place of what was asked, each found by computing the whole budget again."""
    settings = run.settings
    requests = max(1, settings.sequences // settings.num_beams)
    longest = _largest(
        lambda tokens: run.room(tokens, requests) >= 0, run.source.max_context_tokens, least=settings.context_tokens
    ) or _largest(lambda tokens: run.room(tokens, requests) >= 0, settings.context_tokens - 1, least=2)
    most = _largest(lambda number: run.room(settings.context_tokens, number) >= 0, 1 << 14)
    return KvCapacity(
        bytes_per_token=model_token_bytes(run.loaded.spec, settings, run.rules, run.family),
        capacity_tokens=longest * requests,
        blocks=None,
        block_size=None,
        max_concurrency=float(most),
        max_context_tokens=longest,
        needed_bytes=plan.final_cache_bytes,
        needed_tokens=settings.context_tokens * requests,
    )


def _largest(fits: Callable[[int], bool], limit: int, *, least: int = 1) -> int:
    """The largest number up to `limit` that fits, 0 when `least` does not: what is needed grows with the number."""
    if not fits(least):
        return 0
    low = high = least
    while high < limit and fits(high):
        low, high = high, min(high * 4, limit)
    if fits(high):
        return high
    high -= 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _warnings(run: Run) -> tuple[str, ...]:
    warnings = list(input_notes(run.source, run.gpu))
    if run.settings.corrections:
        warnings.append("activations and fragments are corrected by profiles of this model on this GPU")
    if run.loaded.note:
        warnings.append(run.loaded.note)
    if len(run.placed.sizes) > 1:
        warnings.append(describe_placement(run.placed))
    if run.settings.device_map == "cuda" and run.settings.num_gpus > 1:
        warnings.append("device_map=cuda uses the first GPU alone")
    if run.settings.dtype.bits == 32 and run.source.dtype.bits == 16:
        warnings.append("weights are loaded in float32, this release's default: say --dtype auto where the code does")
    if not run.rules.is_known:
        warnings.append(f"transformers {run.rules.version} is outside the known releases; the nearest rules are used")
    if run.unused:
        warnings.append(f"no part of this budget depends on {', '.join(run.unused)}")
    return tuple(warnings)
