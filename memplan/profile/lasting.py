"""What stays longer than it should: leaks, gradients tracked for nothing, caches kept, weights wider than needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from memplan.domain.timeline import CATEGORIES, Finding, LiveTensor, MemoryTimeline, Phase, PhaseMemory
from memplan.profile.alive import Patterns
from memplan.profile.at_peak import fullest_step, live_at
from memplan.profile.events import EventLog
from memplan.units import KIB, format_gib

_INFERENCE: tuple[Phase, ...] = ("prefill", "decode", "generate")
_TRAINING: tuple[Phase, ...] = ("forward", "backward", "optimizer")
_LEAST_GROWTH_BYTES = 64 * KIB
_LEAST_RUNS = 3
_SHARE_OF_LAYERS = 0.5
_GOOD_PART = 0.5
_LEAST_LAYERS = 4


def growth(timeline: MemoryTimeline, log: EventLog | None) -> Iterator[Finding]:
    """Memory that every further run of a phase adds and none gives back."""
    by_phase: dict[Phase, list[PhaseMemory]] = {}
    for phase in timeline.phases:
        by_phase.setdefault(phase.phase, []).append(phase)
    worst: tuple[int, Phase, list[PhaseMemory]] | None = None
    for name, runs in by_phase.items():
        # The first run makes what stays for good: an optimizer's state, a library's workspace.
        steps = [later.after.allocated_bytes - earlier.after.allocated_bytes for earlier, later in pairwise(runs[1:])]
        if len(runs) >= _LEAST_RUNS and min(steps, default=0) >= _LEAST_GROWTH_BYTES:
            each = sum(steps) // len(steps)
            if worst is None or each > worst[0]:
                worst = (each, name, runs)
    if worst is None:
        return
    each, name, runs = worst
    alive = _staying(log, name, runs) if log is not None else []
    held = sorted(Patterns(log).merged(alive, log.sizes, 5), key=lambda tensor: -tensor.size_bytes) if log else []
    what = "; ".join(_said(tensor) for tensor in held[:3])
    what += f". Held by {whose}" if log is not None and (whose := _holders(log, alive)) else ""
    yield Finding(
        code="leak",
        title=f"memory grows with every {name}: {format_gib(each)} each time",
        evidence=f"after {len(runs)} runs {format_gib(runs[-1].after.allocated_bytes - runs[0].after.allocated_bytes)} "
        f"more are held than after the first{f'. Still alive: {what}' if what else ''}",
        mend="do not keep tensors between runs: .item() or .detach() what is logged, clear lists and caches, and delete"
        " outputs before the next run",
        severity="error",
    )


def _staying(log: EventLog, name: Phase, runs: list[PhaseMemory]) -> list[int]:
    """The allocations that runs after the first made and that outlived the last; states are meant to stay."""
    last = max(run.iteration for run in runs)
    made: set[int] = set()
    end = len(log.order)
    for mark, start, stop in log.spans():
        if 0 < mark.iteration < last:
            made.update(event - 1 for event in log.order[start:stop] if event > 0)
        if (mark.phase, mark.iteration) == (name, last):
            end = stop
    stays = ("weights", "gradients", "optimizer_state")
    return [number for number in live_at(log, end) if number in made and log.category(number) not in stays]


def _holders(log: EventLog, alive: list[int]) -> str:
    """Who holds most of some allocations: the first two, if the second holds a good part."""
    sizes: Counter[str] = Counter()
    for number in alive:
        if number in log.holders:
            sizes[log.holders[number]] += log.sizes[number]
    most = sizes.most_common(2)
    return " and ".join(who for who, size in most if size >= _GOOD_PART * most[0][1])


def _said(tensor: LiveTensor) -> str:
    count = f"{tensor.count:,} x " if tensor.count > 1 else ""
    shape = f"{tensor.dtype} {list(tensor.shape)}" if tensor.shape else "blocks"
    parts = [f"{count}{shape}, {format_gib(tensor.size_bytes)}"]
    parts += [f"made by {tensor.operator}"] if tensor.operator else []
    parts += [f"in {tensor.module}"] if tensor.module else []
    parts += [f"at {tensor.where}"] if tensor.where else []
    return " ".join(parts)


def tracked_gradients(timeline: MemoryTimeline, log: EventLog) -> Iterator[Finding]:
    """Activations of most layers alive at once where nothing will ever go backward through them."""
    phases = {phase.phase for phase in timeline.phases}
    if "backward" in phases or "backward" in {mark.phase for mark in log.marks}:
        return
    asked = frozenset(phases & {*_INFERENCE, "forward"})
    step = fullest_step(log, asked)
    if step is None:
        return
    layers: dict[str, int] = {}
    known = {layer for label in log.labels if (layer := _layer(label.module))}
    for number in live_at(log, step):
        layer = _layer(log.labels[log.label_of[number]].module)
        if layer and log.category(number) in ("activations", "unknown"):
            layers[layer] = layers.get(layer, 0) + log.sizes[number]
    if len(layers) < max(_LEAST_LAYERS, _SHARE_OF_LAYERS * len(known)):
        return
    size = sum(layers.values())
    if size < 0.01 * timeline.peak.peak.allocated_bytes:
        return
    yield Finding(
        code="gradient-tracking",
        title="activations of all layers are kept although nothing goes backward",
        evidence=f"{len(layers)} of {len(known)} layers hold {format_gib(size)} of activations at the same moment",
        mend="run inference under torch.inference_mode() (or no_grad), and leave output_hidden_states off",
        saves_bytes=size - max(layers.values()),
        severity="error",
    )


def _layer(module: str) -> str:
    """The part of a module's name up to its first number: the layer that it belongs to."""
    parts = module.split(".")
    for index, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: index + 1])
    return ""


def kept_caches(timeline: MemoryTimeline, log: EventLog | None) -> Iterator[Finding]:
    """A KV cache that is held where nobody reads it: through training, or into the next request."""
    training = [phase for phase in timeline.phases if phase.phase in _TRAINING and phase.by_category.get("kv_cache")]
    if training:
        fullest = max(training, key=lambda phase: phase.by_category["kv_cache"])
        size = fullest.by_category["kv_cache"]
        yield Finding(
            code="cache-in-training",
            title="a KV cache is made while training",
            evidence=f"{format_gib(size)} at the peak of {fullest.phase}",
            mend="use_cache=False",
            saves_bytes=size,
            severity="warning",
        )
    if log is None or timeline.settings.get("execution") == "graph":  # which writes into one cache, again and again
        return
    kept = max(_older_caches(log), default=(0, "load"))
    if kept[0] >= max(_LEAST_GROWTH_BYTES, 0.005 * timeline.peak.peak.allocated_bytes):
        yield Finding(
            code="cache-kept",
            title=f"the KV cache of an earlier request is still held when the next {kept[1]} begins",
            evidence=f"{format_gib(kept[0])} of KV cache are alive at its start",
            mend="drop past_key_values (and outputs that hold it) before the next request, or reuse one static cache",
            saves_bytes=kept[0],
            severity="warning",
        )


def _older_caches(log: EventLog) -> Iterator[tuple[int, Phase]]:
    """The bytes of KV cache from before it that are alive in a phase of a new request.

    They count when the phase makes the first of a cache of its own; where it makes none, when it holds most.
    """
    cache = CATEGORIES.index("kv_cache")
    level = live = 0
    for mark, start, stop in log.spans():
        older, most, found, has_own = live, -1, 0, False
        for event in log.order[start:stop]:
            number = event - 1 if event > 0 else ~event
            change = log.sizes[number] if event > 0 else -log.sizes[number]
            level += change
            if log.category_of[number] == cache:
                live += change
                older += min(change, 0)
                if event > 0 and not has_own:
                    found, has_own = older, True
            if level > most and not has_own:
                most, found = level, older
        if mark.phase in ("load", "prefill", "generate"):
            yield max(found, 0), mark.phase


def full_precision(timeline: MemoryTimeline, log: EventLog | None) -> Iterator[Finding]:
    """Weights of 32 bits in a run that trains nothing."""
    if any(phase.phase in _TRAINING for phase in timeline.phases):
        return
    weights = max((phase.by_category.get("weights", 0) for phase in timeline.phases), default=0)
    wide = _wide_bytes(log) if log is not None else weights if timeline.settings.get("dtype") == "float32" else 0
    if not weights or wide < 0.5 * weights:
        return
    yield Finding(
        code="full-precision",
        title="the weights are in float32",
        evidence=f"{format_gib(wide)} of {format_gib(weights)} of weights have 32 bits",
        mend="load them in 16 bit: dtype=torch.bfloat16 (--dtype bfloat16)",
        saves_bytes=wide // 2,
        severity="warning",
    )


def _wide_bytes(log: EventLog) -> int:
    weights = CATEGORIES.index("weights")
    return sum(
        size
        for size, label, category in zip(log.sizes, log.label_of, log.category_of, strict=True)
        if category == weights and log.labels[label].dtype == "float32"
    )


def unused_batch(timeline: MemoryTimeline) -> Iterator[Finding]:
    """A cache made for the longest request of a batch, of which the mean request uses a part."""
    mean, prompt, output = (timeline.settings.get(name) for name in ("mean_length", "prompt_tokens", "output_tokens"))
    if not (isinstance(mean, int) and isinstance(prompt, int) and isinstance(output, int)):
        return
    cache = max((phase.by_category.get("kv_cache", 0) for phase in timeline.phases), default=0)
    wasted = cache - cache * min(mean, prompt + output) // max(1, prompt + output)
    if wasted < 0.02 * timeline.peak.peak.allocated_bytes:
        return
    yield Finding(
        code="padding",
        title="requests are padded to the longest of their batch",
        evidence=f"the mean request has {mean:,} of {prompt + output:,} tokens: {format_gib(wasted)} of "
        f"{format_gib(cache)} of KV cache hold padding",
        mend="batch continuously over pages (generate_batch, or a serving engine), or sort requests by length",
        saves_bytes=wasted,
        severity="warning",
    )
