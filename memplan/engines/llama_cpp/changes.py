"""The knobs of a llama.cpp start that free GPU memory, each as a person types it; `memplan.engines.remedies` computes
what they return.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.domain.budget import MemoryBudget
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.llama_cpp.engine import as_stored, rules_of
from memplan.engines.llama_cpp.limits import fewest_host_experts, largest_gpu_layers
from memplan.engines.llama_cpp.settings import HOST_BACKEND, resolve
from memplan.engines.remedies import Change, weight_changes
from memplan.records import replace

_MIXES = ("gguf:q8_0", "gguf:q4_k_m", "gguf:iq3_xxs")
_SHORTER = (131072, 65536, 32768, 16384, 8192, 4096)


def changes(spec: ModelSpec, base_spec: ModelSpec, settings: ServingSettings, budget: MemoryBudget) -> Iterator[Change]:
    """Every change worth trying, cheap ones first."""
    now = budget.settings
    yield from _step_changes(spec, settings, now)
    yield from _cache_changes(spec, settings, budget)
    yield from _placement_changes(spec, settings, budget)
    yield from _smaller_mixes(spec, base_spec, settings)


def _with(settings: ServingSettings, **options: object) -> ServingSettings:
    return replace(settings, engine_options={**settings.engine_options, **options})


def _step_changes(spec: ModelSpec, settings: ServingSettings, now: dict[str, object]) -> Iterator[Change]:
    """What makes the compute buffer smaller."""
    if now.get("flash_attention") is False:
        yield Change(label="--flash-attn on", settings=_with(settings, flash_attention=True), spec=spec)
    step = now.get("ubatch_size")
    if isinstance(step, int) and step > 128 and spec.is_generative:
        smaller = _with(settings, ubatch_size=128)
        yield Change(label=f"--ubatch-size {step} -> 128", settings=smaller, spec=spec, note="slower prefill")


def _cache_changes(spec: ModelSpec, settings: ServingSettings, budget: MemoryBudget) -> Iterator[Change]:
    """A shorter context, the longest that fits where the asked one does not, and smaller cells."""
    now, longest = budget.settings, budget.kv.max_context_tokens
    context = now.get("slot_tokens")
    if not isinstance(context, int) or "ctx_size" in settings.engine_options or "parallel" in settings.engine_options:
        lengths: list[int] = []
    else:
        lengths = [longest] if longest and longest < context else []
        lengths += [length for length in _SHORTER if length < min(context, longest or context)][:1]
    for length in lengths:
        workload = replace(settings.workload, context_tokens=length)
        yield Change(label=f"--context {context} -> {length}", settings=replace(settings, workload=workload), spec=spec)
    if now.get("cache_type_k") in ("f16", "bf16", "f32") and now.get("flash_attention"):
        smaller = replace(_without(settings, "cache_type_k", "cache_type_v"), kv_dtype="q8_0")
        yield Change(label="--kv-dtype q8_0", settings=smaller, spec=spec, note="-ctk q8_0 -ctv q8_0")


def _without(settings: ServingSettings, *names: str) -> ServingSettings:
    kept = {name: value for name, value in settings.engine_options.items() if name not in names}
    return replace(settings, engine_options=kept)


def _placement_changes(spec: ModelSpec, settings: ServingSettings, budget: MemoryBudget) -> Iterator[Change]:
    """Experts or layers in host memory, the cache there, or more GPUs."""
    now = budget.settings
    if now.get("backend") == HOST_BACKEND:
        return
    experts, layers = _what_would_fit(spec, settings, budget)
    if experts:
        yield Change(
            label=f"--set n_cpu_moe={experts}",
            settings=_with(settings, n_cpu_moe=experts),
            spec=spec,
            note=f"-ncmoe {experts}: experts on the host, slower",
        )
    given = now.get("n_gpu_layers")
    if layers and isinstance(given, int) and layers < given:
        yield Change(
            label=f"-ngl {given} -> {layers}",
            settings=_with(settings, n_gpu_layers=layers),
            spec=spec,
            note=f"{given - layers} layers on the host: slower",
        )
    if now.get("kv_offload") and budget.verdict != "fits":
        changed = _with(settings, no_kv_offload=True)
        yield Change(label="--set no_kv_offload=true", settings=changed, spec=spec, note="cache on the host: slow")
    layout = settings.layout
    for factor in (2, 4):
        if now.get("num_gpus") and layout.tensor * factor <= 16:
            more = replace(settings, layout=replace(layout, tensor=layout.tensor * factor))
            yield Change(
                label=f"--tp {layout.tensor * factor}",
                settings=more,
                spec=spec,
                num_gpus_factor=factor,
                note=f"{factor} times the GPUs, layers divided",
            )


def _what_would_fit(spec: ModelSpec, settings: ServingSettings, budget: MemoryBudget) -> tuple[int | None, int | None]:
    """The fewest layers whose experts must lie on the host, and the most layers that GPUs hold; None when all fits."""
    sure_bytes = budget.extra.get("sure_bytes")
    if budget.verdict == "fits" or not isinstance(sure_bytes, int):
        return None, None
    rules, stored = rules_of(settings, budget.engine_version), as_stored(spec)
    resolved, _ = resolve(stored, str(budget.settings.get("backend")), settings, rules)
    return fewest_host_experts(stored, resolved, rules, sure_bytes), largest_gpu_layers(
        stored, resolved, rules, sure_bytes
    )


def _smaller_mixes(spec: ModelSpec, base_spec: ModelSpec, settings: ServingSettings) -> Iterator[Change]:
    """Mixes smaller than the one in use, of a model that is not from a file."""
    if base_spec.weights_source == "headers":
        return
    plain = replace(spec, quantization=None)
    for change in weight_changes(plain, base_spec, settings, _MIXES):
        if change.settings.quant != spec.quantization:
            yield change
