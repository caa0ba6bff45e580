"""From the buffers of a start to the answer: lines of the fullest GPU, the host's lines, capacity, verdict, limits."""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.budget import KvCapacity, Line, MemoryBudget, Provenance
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.gates import Gate, shortfall_bytes, spread_line, worst_verdict
from memplan.engines.llama_cpp.device import (
    CONTEXT_BYTES,
    CONTEXT_HIGH_BYTES,
    CONTEXT_LOW_BYTES,
    CONTEXT_SOURCE,
    HOST_PROCESS_BYTES,
)
from memplan.engines.llama_cpp.fitted import spreads
from memplan.engines.llama_cpp.graph_traits import ENCODERS
from memplan.engines.llama_cpp.limits import largest_context, requests_with_room
from memplan.engines.llama_cpp.plan import Plan
from memplan.engines.llama_cpp.settings import LlamaSettings
from memplan.engines.notes import input_notes
from memplan.units import MIB, format_gib

_SOURCE = "llama.cpp {}"
# Options that load something of their own beside the model.
_NOT_COUNTED = frozenset(
    {
        *("model_draft", "md", "hf_repo_draft", "hfd", "hfrd", "mmproj", "mm", "mmproj_url", "mmu"),
        *("lora", "lora_scaled", "control_vector", "model_vocoder", "mv"),
    }
)


def budget_of(
    spec: ModelSpec,
    gpu: GpuSpec,
    asked: ServingSettings,
    settings: LlamaSettings,
    rules: Rules,
    plan: Plan,
    unused: tuple[str, ...],
) -> MemoryBudget:
    """Return the whole budget, per GPU of the fullest one."""
    free = asked.gpu_free_bytes or gpu.memory_bytes
    lines = _lines(spec, settings, rules, plan)
    width = spreads(spec, settings, rules).compute
    alone = plan.devices.is_host_alone
    gates = [_gate(plan, device, free, width) for device in plan.devices.budgeted if _is_used(plan, device)]
    fits_in = free - _beside(plan)
    host = _host_lines(settings, plan)
    extra: dict[str, object] = {
        "kv_available_bytes": fits_in - plan.device_bytes(plan.fullest) + plan.cache.keys_and_values[plan.fullest],
        "sure_bytes": fits_in - max((gate.spread_bytes for gate in gates), default=0),
        "host_lines": [{"name": name, "bytes": size, "formula": formula} for name, size, formula in host],
        "devices": [_device(settings, plan, device) for device in range(settings.num_gpus)],
    }
    return MemoryBudget(
        model_name=spec.name,
        architecture=spec.architecture,
        parameters=spec.parameters,
        active_parameters=spec.active_parameters,
        weights_source=spec.weights_source,
        gpu_name=gpu.name,
        num_gpus=1 if alone else settings.num_gpus,
        gpu_memory_bytes=gpu.memory_bytes,
        engine_name="llama.cpp",
        engine_version=rules.version,
        settings=settings.as_dict(),
        lines=lines,
        kv=_capacity(spec, settings, rules, plan, fits_in, asked.workload.concurrency),
        host_bytes=sum(size for _, size, _ in host),
        verdict=worst_verdict(gates) if gates else "fits",
        shortfall_bytes=shortfall_bytes(gates) if gates else 0,
        reasons=_reasons(gates, rules, alone=alone),
        warnings=(
            *input_notes(spec, gpu),
            *_warnings(spec, rules, asked, settings, unused),
            *(_prompt_cache_warning(plan, settings, fits_in) if alone else ()),
        ),
        extra=extra,
    )


def _is_used(plan: Plan, device: int) -> bool:
    return plan.device_bytes(device) > 0


def _gate(plan: Plan, device: int, free: int, width: float) -> Gate:
    spread = (CONTEXT_HIGH_BYTES - CONTEXT_LOW_BYTES) // 2 + round(plan.compute[device] * width)
    margin = free - _beside(plan) - plan.device_bytes(device)
    return Gate(margin_bytes=margin, spread_bytes=spread, reason=f"GPU {device} cannot hold its layers")


def _beside(plan: Plan) -> int:
    """What a process takes beside the buffers of its fullest device."""
    return HOST_PROCESS_BYTES + plan.output_bytes if plan.devices.is_host_alone else CONTEXT_BYTES


def _prompt_cache_warning(plan: Plan, settings: LlamaSettings, fits_in: int) -> tuple[str, ...]:
    """On a machine without a GPU, prompts are kept in the same memory, until it is full."""
    left = max(0, fits_in - plan.device_bytes(plan.fullest))
    if settings.cache_ram_mib * MIB <= left:
        return ()
    return (f"prompts are kept beside it until the memory is full: --cache-ram {left // MIB} keeps them within it",)


def _reasons(gates: list[Gate], rules: Rules, *, alone: bool) -> tuple[str, ...]:
    if all(gate.verdict == "fits" for gate in gates):
        return ()
    if alone:
        return ("weights, cache and compute buffer do not fit in the memory",)
    reason = "weights, cache and compute buffer do not fit beside the context"
    if not rules["fits_itself"]:
        return (reason,)
    return reason, "with --fit, its default, the server lowers -ngl and -c by itself where they are left open"


def _lines(spec: ModelSpec, settings: LlamaSettings, rules: Rules, plan: Plan) -> tuple[Line, ...]:
    """The lines of the fullest GPU; of a start without GPU layers, what the GPU still computes."""
    device = plan.fullest
    source = _SOURCE.format(rules.version)
    known: Provenance = "exact" if spec.weights_source == "headers" else "derived"
    fitted = spreads(spec, settings, rules)
    lines = []
    for name, size in plan.weights.by_part[device].items():
        lines.append(
            spread_line(
                f"weights: {name}",
                "weights",
                size,
                0 if known == "exact" else round(size * fitted.weights),
                known,
                "elements x bits of their ggml type, rows and tensors padded",
                source,
            )
        )
    lines.append(_cache_line("KV cache", plan.cache.keys_and_values[device], settings, plan, source))
    if any(plan.cache.states):
        lines.append(_cache_line("recurrent states", plan.cache.states[device], settings, plan, source))
    compute = plan.compute[device]
    lines.append(
        spread_line(
            "compute buffer",
            "activation_peak",
            compute,
            round(compute * fitted.compute),
            "modelled",
            f"ggml's allocation of one step of {min(settings.ubatch_size, settings.ctx_size)} tokens",
            source,
        )
    )
    if plan.devices.is_host_alone:
        lines.append(_process_line(plan, source))
        return tuple(line for line in lines if line.size_bytes)
    lines.append(
        Line(
            name="CUDA context" if settings.backend == "CUDA" else f"{settings.backend} context",
            group="non_torch",
            size_bytes=CONTEXT_BYTES,
            low_bytes=CONTEXT_LOW_BYTES,
            high_bytes=CONTEXT_HIGH_BYTES,
            provenance="assumed",
            formula="driver context, kernels, cuBLAS, pools",
            source=CONTEXT_SOURCE,
        )
    )
    return tuple(line for line in lines if line.size_bytes)


def _process_line(plan: Plan, source: str) -> Line:
    """The server itself, with the rows of logits that it gives out."""
    size = HOST_PROCESS_BYTES + plan.output_bytes
    return Line(
        name="process and output buffer",
        group="non_torch",
        size_bytes=size,
        low_bytes=size - HOST_PROCESS_BYTES // 2,
        high_bytes=size + HOST_PROCESS_BYTES // 2,
        provenance="assumed",
        formula="512 MiB + rows of logits x 4 bytes",
        source=source,
    )


def _cache_line(name: str, size: int, settings: LlamaSettings, plan: Plan, source: str) -> Line:
    window = f", {plan.cells.window} in window layers" if 0 < plan.cells.window < plan.cells.context else ""
    cells = f"{plan.cells.streams} x {plan.cells.context} cells{window}"
    formula = "states x 4 bytes" if "states" in name else f"{cells}, keys {settings.cache_type_k}"
    return spread_line(name, "kv_cache", size, 0, "derived", formula, source)


def _host_lines(settings: LlamaSettings, plan: Plan) -> list[tuple[str, int, str]]:
    """What the machine's own memory holds."""
    host = plan.devices.host
    lines = [
        (
            "weights on the host",
            plan.weights.host_bytes,
            "mapped from the file" if settings.mmap else "read into memory",
        ),
        ("KV cache on the host", plan.cache.keys_and_values[host] + plan.cache.states[host], "of layers on the host"),
        ("compute buffer on the host", plan.compute[host], "masks, positions, embeddings, host layers"),
        ("output buffer", plan.output_bytes, "rows of logits x 4 bytes"),
        ("prompt cache", settings.cache_ram_mib * MIB, "--cache-ram, filled by use"),
        ("process", HOST_PROCESS_BYTES, "assumed"),
    ]
    return [line for line in lines if line[1]]


def _device(settings: LlamaSettings, plan: Plan, device: int) -> dict[str, object]:
    return {
        "name": f"{settings.backend}{device}",
        "layers": plan.devices.layers.count(device) + (plan.devices.output == device),
        "weights_bytes": plan.weights.by_device[device],
        "kv_cache_bytes": plan.cache.keys_and_values[device],
        "state_bytes": plan.cache.states[device],
        "compute_bytes": plan.compute[device],
        "used_bytes": plan.device_bytes(device) + CONTEXT_BYTES,
    }


def _capacity(
    spec: ModelSpec, settings: LlamaSettings, rules: Rules, plan: Plan, fits_in: int, concurrency: int
) -> KvCapacity:
    """The cache in llama.cpp's terms: cells of the whole context, and what one slot may use of them."""
    kept = plan.cache.keys_and_values[plan.fullest]
    longest = largest_context(spec, settings, rules, fits_in)
    return KvCapacity(
        bytes_per_token=plan.cache.token_bytes,
        capacity_tokens=settings.ctx_size,
        blocks=settings.streams,
        block_size=settings.ctx_size // settings.streams,
        max_concurrency=round(
            requests_with_room(spec, settings, rules, fits_in, longest, settings.ctx_size // concurrency), 2
        ),
        max_context_tokens=longest,
        needed_bytes=kept,
        needed_tokens=settings.ctx_size,
    )


def _warnings(
    spec: ModelSpec, rules: Rules, asked: ServingSettings, settings: LlamaSettings, unused: tuple[str, ...]
) -> tuple[str, ...]:
    warnings = []
    if not rules.is_known:
        warnings.append(f"llama.cpp {rules.version} is outside the builds that are known; the nearest rules are used")
    if spec.weights_source != "headers" and spec.quantization is None:
        warnings.append("weights in 16 bit: name a mix with --quant gguf:q4_k_m, or give the .gguf file")
    if spec.model_type in ENCODERS:
        warnings.append(
            f"an encoder reads an input in one step: none longer than {settings.ubatch_size} tokens (-b and -ub)"
        )
    elif settings.cache_ram_mib:
        size = format_gib(settings.cache_ram_mib * MIB)
        warnings.append(f"the server keeps prompts in up to {size} of host memory (--cache-ram)")
    if not_counted := [name for name in unused if name in _NOT_COUNTED]:
        warnings.append(f"not counted: the memory of {', '.join(not_counted)}")
        unused = tuple(name for name in unused if name not in _NOT_COUNTED)
    if spec.model_type not in ENCODERS and settings.slot_tokens < settings.ctx_size:
        warnings.append(f"{settings.slots} slots divide the context: one request has {settings.slot_tokens} tokens")
    if asked.kv_keep_fraction < 1.0:
        warnings.append("--kv-keep changes nothing: llama.cpp reserves the whole context and prunes none of it")
    if settings.fork == "ik":
        warnings.append("ik_llama.cpp: cache and weights follow its rules, compute buffers those of llama.cpp")
    if unused:
        warnings.append(f"options that memory does not depend on: {', '.join(unused)}")
    return tuple(warnings)
