"""From one rank's terms to the answer: lines with their intervals, the capacity, the verdict and its reasons."""

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
from memplan.engines.tensorrt_llm.fitted import Fitted
from memplan.engines.tensorrt_llm.rank import RankPlan, max_blocks
from memplan.engines.tensorrt_llm.settings import TrtllmSettings, has_windows
from memplan.records import dataclass
from memplan.units import GIB, MIB, ceil_div

_FITTED = "catalog/engines/tensorrt_llm_fitted.yaml"
_HOST_BASE_BYTES = 8 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far terms may be off at 90 %: half-widths in bytes."""

    weights: int
    activation: int
    outside: int
    graphs: int
    cache: int


def budget_of(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: TrtllmSettings,
    rules: Rules,
    fitted: Fitted,
    plan: RankPlan,
    unused: tuple[str, ...],
) -> MemoryBudget:
    """Return the whole budget of the tightest rank."""
    spread = _spread(spec, gpu, settings, fitted, plan)
    capacity = _capacity(spec, asked, settings, plan, spread)
    gates = _gates(plan, spread, capacity)
    return MemoryBudget(
        model_name=spec.name,
        architecture=spec.architecture,
        parameters=spec.parameters,
        active_parameters=spec.active_parameters,
        weights_source=spec.weights_source,
        gpu_name=gpu.name,
        num_gpus=settings.num_gpus,
        gpu_memory_bytes=gpu.memory_bytes,
        engine_name="tensorrt-llm",
        engine_version=rules.version,
        settings={**settings.as_dict(), **_shared_names(settings)},
        lines=_lines(settings, plan, spread, rules),
        kv=capacity,
        host_bytes=_HOST_BASE_BYTES * settings.num_gpus + settings.offload_bytes,
        verdict=worst_verdict(gates),
        shortfall_bytes=shortfall_bytes(gates),
        reasons=tuple(gate.reason for gate in gates if gate.verdict != "fits"),
        warnings=(*input_notes(spec, gpu), *_warnings(spec, asked, settings, rules, plan, capacity, unused)),
        extra={"kv_available_bytes": plan.cache_bytes},
    )


def _shared_names(settings: TrtllmSettings) -> dict[str, object]:
    """The settings that all engines share, under the names that remedies look for."""
    return {
        "max_num_seqs": settings.max_batch_size,
        "max_num_batched_tokens": settings.max_num_tokens,
        "enable_chunked_prefill": True,
        "max_model_len": settings.context_tokens,
        "gpu_memory_utilization": settings.free_fraction,
        "enforce_eager": settings.graph_batch == 0,
    }


def _spread(spec: ModelSpec, gpu: GpuSpec, settings: TrtllmSettings, fitted: Fitted, plan: RankPlan) -> Spread:
    widths, held = fitted.intervals, plan.held
    ranks = settings.layout.tensor * settings.layout.pipeline
    share = widths.weights_int4 if "int4" in (spec.quantization or "") else widths.weights
    weights = round(held.weights_bytes * share + widths.weights_mib * MIB)
    activation = round(held.activation_bytes * widths.activation + widths.activation_mib * MIB)
    outside = round((widths.outside_mib if ranks == 1 else widths.outside_ranks_mib) * MIB)
    memory = (gpu.visible_high_bytes - gpu.visible_low_bytes) // 2
    graphs = round(held.graph_bytes * widths.cuda_graph)
    free = sqrt(weights**2 + activation**2 + outside**2 + graphs**2 + memory**2)
    given = settings.free_before_cache_bytes is not None
    return Spread(
        weights=weights,
        activation=activation,
        outside=outside,
        graphs=graphs,
        cache=0 if given else round(free * settings.free_fraction),
    )


def _lines(settings: TrtllmSettings, plan: RankPlan, spread: Spread, rules: Rules) -> tuple[Line, ...]:
    cache = spread_line(
        "KV cache",
        "kv_cache",
        plan.pools.used_bytes(plan.blocks),
        spread.cache,
        "derived",
        "(device - all of the above) x free_gpu_memory_fraction, in whole blocks",
        rules.source("free_fraction"),
    )
    lines = (*_weight_lines(plan, spread), *_step_lines(settings, plan, spread, rules), cache)
    return tuple(line for line in lines if line.size_bytes)


def _weight_lines(plan: RankPlan, spread: Spread) -> list[Line]:
    total = max(1, plan.held.weights_bytes)
    return [
        spread_line(
            f"weights: {name}",
            "weights",
            size,
            round(spread.weights * abs(size) / total),
            "modelled" if name == "buffers of modules" else "derived",
            "elements kept on a rank x bits",
            _FITTED if name == "buffers of modules" else "docs/memory-model.md, Weights",
        )
        for name, size in plan.held.weights.items()
    ]


def _step_lines(settings: TrtllmSettings, plan: RankPlan, spread: Spread, rules: Rules) -> list[Line]:
    held = plan.held
    profiled = "profiled step" if settings.flow == "pytorch" else "execution context"
    widest = f"widest layer x {settings.max_num_tokens:,} tokens"
    workspace = "queries of max_num_tokens + 32 MiB, or FlashInfer's buffer"
    outside = "outside torch: context, libraries, communication"
    step: list[tuple[str, Group, int, int, Provenance, str, str]] = [
        (
            f"activation peak, {profiled}",
            "activation_peak",
            held.activation_bytes,
            spread.activation,
            "modelled",
            widest,
            "docs/memory-model.md, Activations",
        ),
        (
            "attention workspace",
            "activation_peak",
            held.workspace_bytes,
            held.workspace_bytes // 4,
            "derived",
            workspace,
            rules.source("attention_base_mib"),
        ),
        (
            "runtime and decoder buffers",
            "activation_peak",
            held.buffers_bytes,
            held.buffers_bytes // 4,
            "modelled",
            "max_batch_size x vocabulary x bytes",
            rules.source("runtime_buffers"),
        ),
        (
            "recurrent states",
            "kv_cache",
            held.states_bytes,
            0,
            "derived",
            "max_batch_size x state of one request",
            rules.source("states_dtype"),
        ),
        (outside, "non_torch", held.outside_bytes, spread.outside, "modelled", "per process", _FITTED),
        ("CUDA graphs", "cuda_graph", held.graph_bytes, spread.graphs, "modelled", "batches x layers", _FITTED),
    ]
    return [spread_line(*line) for line in step]


def _capacity(
    spec: ModelSpec, asked: ServingSettings, settings: TrtllmSettings, plan: RankPlan, spread: Spread
) -> KvCapacity:
    per_token, pools = model_token_bytes(spec, settings.kv), plan.pools
    if not pools.pools:
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
    groups = settings.layout.data * (settings.layout.tensor if settings.attention_dp else 1)
    share = ceil_div(asked.workload.concurrency, groups)
    per_request = pools.request_blocks(asked.kept_tokens(settings.context_tokens))
    size = settings.tokens_per_block
    low, high = (pools.blocks(plan.cache_bytes + sign * spread.cache) * size for sign in (-1, 1))
    tokens = plan.blocks * size
    room = plan.blocks / per_request
    return KvCapacity(
        bytes_per_token=per_token,
        capacity_tokens=tokens,
        blocks=plan.blocks,
        block_size=size,
        max_concurrency=room_for(lambda requests: per_request * requests <= plan.blocks, room, groups=groups),
        max_context_tokens=_max_context(spec, asked, settings, plan),
        needed_bytes=pools.used_bytes(per_request * share),
        needed_tokens=settings.context_tokens * asked.workload.concurrency,
        low_tokens=min(tokens, low),
        high_tokens=max(tokens, min(high, settings.max_tokens or high)),
    )


def _max_context(spec: ModelSpec, asked: ServingSettings, settings: TrtllmSettings, plan: RankPlan) -> int:
    """The longest request that has room alone, in pools as they would be cut for its length."""
    low, high = 0, max(spec.max_context_tokens, settings.context_tokens)
    while low < high:
        middle = (low + high + 1) // 2
        pools = plan.pools.at_context(middle)
        blocks = min(pools.blocks(plan.cache_bytes), max_blocks(settings))
        fits = pools.request_blocks(asked.kept_tokens(middle)) <= blocks
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _gates(plan: RankPlan, spread: Spread, capacity: KvCapacity) -> list[Gate]:
    gates = [
        Gate(
            margin_bytes=plan.cache_bytes,
            spread_bytes=spread.cache,
            reason="weights, activations and buffers leave nothing for the cache",
        )
    ]
    if capacity.needed_bytes:
        margin = plan.pools.used_bytes(plan.blocks) - capacity.needed_bytes
        gates.append(
            Gate(
                margin_bytes=margin,
                spread_bytes=spread.cache,
                reason="the cache is too small for the asked context x concurrency",
            )
        )
    return gates


def _warnings(
    spec: ModelSpec,
    asked: ServingSettings,
    settings: TrtllmSettings,
    rules: Rules,
    plan: RankPlan,
    capacity: KvCapacity,
    unused: tuple[str, ...],
) -> tuple[str, ...]:
    warnings = []
    if not rules.is_known:
        warnings.append(f"TensorRT-LLM {rules.version} is not in the rule table; the nearest known release was used")
    if capacity.capacity_tokens and capacity.capacity_tokens < settings.context_tokens:
        warnings.append(f"max_seq_len is cut to {capacity.capacity_tokens} tokens without an error")
    if has_windows(spec) and not settings.windows:
        warnings.append("window layers are kept at full length: give max_attention_window to save their cache")
    if asked.workload.concurrency > settings.max_batch_size * settings.layout.data:
        warnings.append(f"max_batch_size is {settings.max_batch_size}: more requests wait")
    if unused:
        warnings.append(f"options that the estimate does not depend on: {', '.join(unused)}")
    return tuple(warnings)
