"""The knobs, ranked by what they return: every change is computed again as a whole budget, never guessed.

What a change saves is how much the room left over grows: what the cache would have, less what the asked requests need.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping

from memplan.domain.budget import MemoryBudget, Remedy
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.starts import starts
from memplan.errors import MemplanError
from memplan.records import dataclass, replace
from memplan.units import MIB

_WORTH_BYTES = 16 * MIB
_SCHEMES = ("fp8", "awq-int4-g128")
# Engines whose knobs are not vLLM's: which function yields their changes.
_CHANGES: Mapping[str, str] = {
    "llama.cpp": "memplan.engines.llama_cpp.changes:changes",
    "transformers": "memplan.engines.transformers.changes:changes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change to try: the flag as a person types it, the settings with it, and the model if the change alters it."""

    label: str
    settings: ServingSettings
    spec: ModelSpec
    num_gpus_factor: int = 1
    note: str = ""


def ranked_remedies(
    estimate: Callable[[ModelSpec, ServingSettings], MemoryBudget],
    spec: ModelSpec,
    base_spec: ModelSpec,
    gpu: GpuSpec,
    settings: ServingSettings,
    budget: MemoryBudget,
) -> tuple[Remedy, ...]:
    """Return the changes that free memory, the largest first, each by what `estimate` answers for it.

    `base_spec` is the model before any quantization.

    A change that would not start on the card is left out, unless nothing starts there.
    """
    remedies: list[Remedy] = []
    started = starts(budget, spec, gpu, settings)
    for change in _changes(spec, base_spec, settings, budget):
        try:
            changed = estimate(change.spec, change.settings)
        except MemplanError:
            continue
        if started and not starts(changed, change.spec, gpu, change.settings):
            continue
        saves = headroom_bytes(changed) - headroom_bytes(budget)
        if saves >= _WORTH_BYTES:
            remedies.append(Remedy(change=change.label, saves_bytes=saves, verdict=changed.verdict, note=change.note))
    return tuple(sorted(remedies, key=lambda remedy: -remedy.saves_bytes))


def headroom_bytes(budget: MemoryBudget) -> int:
    """Bytes of cache left over on the fullest GPU once the asked requests have theirs; negative when they do not fit.

    Weights that an engine left on the host count as missing.
    """
    available = budget.extra.get("kv_available_bytes", budget.group_bytes("kv_cache"))
    spilled = budget.extra.get("spilled_bytes", 0)
    assert isinstance(available, int)
    assert isinstance(spilled, int)
    return available - budget.kv.needed_bytes - spilled


def _changes(
    spec: ModelSpec, base_spec: ModelSpec, settings: ServingSettings, budget: MemoryBudget
) -> Iterator[Change]:
    if budget.engine_name in _CHANGES:
        module, function = _CHANGES[budget.engine_name].split(":")
        own: Callable[..., Iterator[Change]] = getattr(importlib.import_module(module), function)
        yield from own(spec, base_spec, settings, budget)
        return
    yield from _batch_changes(spec, settings, budget)
    yield from _cache_changes(spec, settings, budget)
    yield from _layout_changes(spec, settings)
    yield from weight_changes(spec, base_spec, settings, _SCHEMES)


def _batch_changes(spec: ModelSpec, settings: ServingSettings, budget: MemoryBudget) -> Iterator[Change]:
    seqs, tokens = budget.settings.get("max_num_seqs"), budget.settings.get("max_num_batched_tokens")
    if isinstance(seqs, int):
        for fewer in (256, 64, 16):
            if settings.workload.concurrency <= fewer < seqs:
                changed = replace(settings, max_num_seqs=fewer)
                yield Change(label=f"--max-num-seqs {seqs} -> {fewer}", settings=changed, spec=spec)
    if isinstance(tokens, int) and budget.settings.get("enable_chunked_prefill"):
        for fewer in (8192, 2048):
            if fewer < tokens:
                changed = replace(settings, max_num_batched_tokens=fewer)
                yield Change(label=f"--max-num-batched-tokens {tokens} -> {fewer}", settings=changed, spec=spec)
    if any(tower.media for tower in spec.towers) and not settings.language_model_only:
        changed = replace(settings, language_model_only=True)
        yield Change(label="--language-model-only", settings=changed, spec=spec, note="text only")


def _cache_changes(spec: ModelSpec, settings: ServingSettings, budget: MemoryBudget) -> Iterator[Change]:
    context = budget.settings.get("max_model_len")
    if isinstance(context, int):
        for shorter in (131072, 32768, 8192):
            if shorter < context:
                workload = replace(settings.workload, context_tokens=shorter)
                changed = replace(settings, workload=workload)
                yield Change(label=f"--context {context} -> {shorter}", settings=changed, spec=spec)
                break
    if budget.settings.get("kv_cache_dtype") in ("bfloat16", "float16", "float32"):
        yield Change(
            label="--kv-dtype fp8", settings=replace(settings, kv_dtype="fp8"), spec=spec, note="check quality first"
        )
    utilization = budget.settings.get("gpu_memory_utilization")
    is_shared = settings.gpu_free_bytes is not None  # what others hold there is not this engine's to take
    if isinstance(utilization, float) and utilization < 0.95 and not is_shared:
        changed = replace(settings, gpu_memory_utilization=0.95)
        yield Change(label=f"--gpu-memory-utilization {utilization:g} -> 0.95", settings=changed, spec=spec)
    if budget.settings.get("enforce_eager") is False:
        yield Change(label="--eager", settings=replace(settings, eager=True), spec=spec, note="slower decoding")


def _layout_changes(spec: ModelSpec, settings: ServingSettings) -> Iterator[Change]:
    layout = settings.layout
    for factor in (2, 4, 8):
        if layout.tensor * factor <= 16:
            changed = replace(settings, layout=replace(layout, tensor=layout.tensor * factor))
            yield Change(
                label=f"--tp {layout.tensor * factor}",
                settings=changed,
                spec=spec,
                num_gpus_factor=factor,
                note=f"{factor} times the GPUs",
            )


def weight_changes(
    spec: ModelSpec, base_spec: ModelSpec, settings: ServingSettings, schemes: tuple[str, ...]
) -> Iterator[Change]:
    """The weights in other schemes, for a model whose weights are plain."""
    if spec.quantization:
        return
    from memplan.catalog.quant_schemes import parse_scheme
    from memplan.introspect.quantized import quantize_spec

    for name in schemes:
        try:
            quantized = quantize_spec(base_spec, parse_scheme(name))
        except MemplanError:
            continue
        changed = replace(settings, quant=name)
        yield Change(label=f"--quant {name}", settings=changed, spec=quantized, note="check quality first")
