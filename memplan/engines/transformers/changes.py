"""The knobs of a transformers run that free memory, each as a person types it; `memplan.engines.remedies` computes what
they return.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.domain.budget import MemoryBudget
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.engines.remedies import Change, weight_changes
from memplan.records import replace

_SCHEMES = ("bnb-int8", "bnb-nf4")
_CHUNK = 2048


def changes(spec: ModelSpec, base_spec: ModelSpec, settings: ServingSettings, budget: MemoryBudget) -> Iterator[Change]:
    """Every change worth trying, cheap ones first."""
    now = budget.settings
    yield from _pass_changes(spec, settings, now)
    yield from _cache_changes(spec, settings, now)
    yield from _placement_changes(spec, settings, now)
    if now.get("dtype") == "float32" and spec.dtype.bits == 16:
        yield Change(label="--dtype auto", settings=replace(settings, dtype="auto"), spec=spec)
    yield from weight_changes(spec, base_spec, settings, _SCHEMES)


def _with(settings: ServingSettings, **options: object) -> ServingSettings:
    return replace(settings, engine_options={**settings.engine_options, **options})


def _set(spec: ModelSpec, settings: ServingSettings, name: str, value: object, note: str = "") -> Change:
    shown = str(value).lower() if isinstance(value, bool) else value
    return Change(label=f"--set {name}={shown}", settings=_with(settings, **{name: value}), spec=spec, note=note)


def _pass_changes(spec: ModelSpec, settings: ServingSettings, now: dict[str, object]) -> Iterator[Change]:
    """What makes the prefill's fullest moment smaller."""
    if now.get("logits_to_keep") == 0:
        yield _set(spec, settings, "logits_to_keep", 1, "only the last token's logits")
    if now.get("attn_implementation") == "eager":
        yield _set(spec, settings, "attn_implementation", "sdpa")
    if now.get("attn_implementation") != "flash_attention_2":
        yield _set(spec, settings, "attn_implementation", "flash_attention_2", "needs flash-attn installed")
    if now.get("padding"):
        yield _set(spec, settings, "padding", False, "prompts of one length")
    prompt, chunk = now.get("prompt_tokens"), now.get("prefill_chunk_size")
    if isinstance(prompt, int) and prompt > _CHUNK and chunk is None:
        yield _set(spec, settings, "prefill_chunk_size", _CHUNK, "prefill in pieces")
    if not now.get("kernels"):
        yield _set(spec, settings, "kernels", True, "optional kernels installed")


def _cache_changes(spec: ModelSpec, settings: ServingSettings, now: dict[str, object]) -> Iterator[Change]:
    """What makes the cache smaller, or puts it elsewhere."""
    if now.get("cache_implementation") == "dynamic":
        yield _set(spec, settings, "cache_implementation", "quantized", "4 bit; check quality first")
        yield _set(spec, settings, "cache_implementation", "offloaded", "the cache lies on the host: slower")
        fp8 = _with(settings, cache_implementation="quantized", cache_backend="fp8")
        label = "--set cache_implementation=quantized --set cache_backend=fp8"
        yield Change(label=label, settings=fp8, spec=spec, note="check quality first")
    if now.get("cache_implementation") == "static":
        yield _set(spec, settings, "cache_implementation", "dynamic")
    beams = now.get("num_beams")
    if isinstance(beams, int) and beams > 1:
        yield _set(spec, settings, "num_beams", 1)
    context = now.get("max_length")
    for shorter in (131072, 32768, 8192, 2048):
        if isinstance(context, int) and shorter < context:
            workload = replace(settings.workload, context_tokens=shorter)
            yield Change(
                label=f"--context {context} -> {shorter}", settings=replace(settings, workload=workload), spec=spec
            )
            break


def _placement_changes(spec: ModelSpec, settings: ServingSettings, now: dict[str, object]) -> Iterator[Change]:
    """More GPUs, or one filled to the brim."""
    layout = settings.layout
    gpus = layout.tensor * layout.pipeline
    if now.get("device_map") != "cuda" and gpus == 1:
        yield _set(spec, settings, "device_map", "cuda", "no tenth kept back")
    if now.get("device_map") != "sequential" and gpus > 1:
        yield _set(spec, settings, "device_map", "sequential", "GPUs filled one after the other")
    for factor in (2, 4, 8):
        if gpus * factor <= 16:
            changed = replace(settings, layout=replace(layout, pipeline=layout.pipeline * factor))
            yield Change(
                label=f"--pp {layout.pipeline * factor}",
                settings=changed,
                spec=spec,
                num_gpus_factor=factor,
                note=f"{factor} times the GPUs",
            )
