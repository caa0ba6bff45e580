"""A step of a deep model from two steps of short ones.

Layers that repeat do the same thing at every depth, so what is allocated at a moment of layer i of n is affine in i and
in n: the most over all layers is in the first or the last repeats, and grows by the same amount with each further
repeat. Two steps, with three and with five repeats, say both. What comes out is what the whole step gives, byte for
byte; only a buffer over all layers (DDP's) is rounded to a whole block once instead of twice. Where nothing is of all
layers together, a step of a few layers is run once, and every other is put together from its parts (stitched.py).

What the caching allocator keeps beyond that is made by what comes and goes within a layer, and is taken from the short
step; it grows with depth where every layer leaves activations behind. That is not exact: docs/training.md says how far
it is from a replay of the whole step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache

from memplan.budget.training.composed import can_compose, composed_phases, shortest_stack
from memplan.budget.training.device import Held, PhaseHeld
from memplan.budget.training.reserved import Ran, reserved_bytes
from memplan.budget.training.step import Step
from memplan.budget.training.stitched import NotAlike, Stitches
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.training import TrainingSpec
from memplan.records import dataclass, replace
from memplan.units import ceil_div

_LONGEST_PERIOD = 12
_FEW, _MORE = 3, 5  # repeats: the first, the last, and one or more that have neighbours on both sides
_NUMBER = re.compile(r"\blayers\.\d+\.?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepHeld:
    """A step on one rank: its phases, and how to find what the allocator reserves, which takes as long again."""

    phases: tuple[PhaseHeld, ...]
    find_reserved: Callable[[], int]

    @property
    def peak(self) -> PhaseHeld:
        """The phase in which most is allocated."""
        return max(self.phases, key=lambda each: each.peak_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """Layers as a part before, a part that repeats, and a part after."""

    before: tuple[Layer, ...]
    period: tuple[Layer, ...]
    repeats: int
    after: tuple[Layer, ...]

    def layers(self, repeats: int) -> tuple[Layer, ...]:
        """The layers with so many repeats."""
        return self.before + self.period * repeats + self.after


def run_step(spec: ModelSpec, training: TrainingSpec, *, with_held: bool = True) -> StepHeld:
    """A step on the rank that holds most: of a pipeline the first stage, which has most micro-batches under way, or the
    last, which has the loss. Without `with_held` the phases say only how much is held, not what.
    """
    stages = training.layout.pipeline
    found = [run_stage(spec, training, number, with_held=with_held) for number in sorted({0, stages - 1})]
    return max(found, key=lambda each: each.peak.peak_bytes)


def run_stage(spec: ModelSpec, training: TrainingSpec, stage: int, *, with_held: bool = True) -> StepHeld:
    """A step on one pipeline stage: `Step(spec, training, stage)`, with names that have no numbers of layers."""
    pattern = find_pattern(stage_layers(spec, training, stage))
    parts = Parts(spec, training) if can_compose(training) else None

    @cache
    def performed(repeats: int) -> Ran:
        """The step with so many repeats."""
        layers = pattern.layers(repeats)
        return (parts and parts.stitched(layers)) or _performed(spec, training, stage, layers)

    phases = composed_phases(spec, parts.step, parts.layers) if parts and not with_held else None
    phases = phases or _phases(pattern, performed, with_held=with_held)
    return StepHeld(phases=phases, find_reserved=lambda: _reserved_bytes(training, pattern, phases, performed))


class Parts:
    """A step of the few layers that have all neighbourhoods of the model's."""

    def __init__(self, spec: ModelSpec, training: TrainingSpec) -> None:
        self.layers = shortest_stack(spec.layers)
        self.step = _performed(spec, training, 0, self.layers)
        self._stitches: Stitches | None = None

    def stitched(self, layers: tuple[Layer, ...]) -> Ran | None:
        """The step of these layers; None where it cannot be put together."""
        if layers == self.layers:
            return self.step
        try:
            self._stitches = self._stitches or Stitches(self.step, self.layers)
            return self._stitches.stitched(layers)
        except NotAlike:
            return None


def _performed(spec: ModelSpec, training: TrainingSpec, stage: int, layers: tuple[Layer, ...]) -> Step:
    step = _short(spec, training, stage, layers)
    step.perform()
    return step


def _phases(pattern: Pattern, performed: Callable[[int], Ran], *, with_held: bool) -> tuple[PhaseHeld, ...]:
    """The phases from two short steps; from the whole step where nothing repeats."""
    if pattern.repeats == 1:
        return tuple(_unnumbered(each) for each in performed(1).device.phases(with_held=with_held))
    further = (pattern.repeats - _FEW) / (_MORE - _FEW)
    found: dict[str, PhaseHeld] = {}
    windows = [_windows(performed(each), pattern, each, with_held=with_held) for each in (_FEW, _MORE)]
    for first, second in zip(*windows, strict=True):
        grown = _extrapolated(first, second, further)
        known = found.get(grown.name)
        if known is not None and known.peak_bytes >= grown.peak_bytes:
            grown = replace(known, after_bytes=grown.after_bytes)
        found[grown.name] = grown
    return tuple(found.values())


def _reserved_bytes(
    training: TrainingSpec, pattern: Pattern, phases: tuple[PhaseHeld, ...], performed: Callable[[int], Ran]
) -> int:
    """What the whole step reserves."""
    if pattern.repeats == 1:
        return reserved_bytes(performed(1))
    return max(each.peak_bytes for each in phases) + _whole_spare_bytes(training, pattern, performed)


def run_evaluation(spec: ModelSpec, training: TrainingSpec, load: PhaseHeld) -> PhaseHeld:
    """The fullest moment of an evaluation at the same micro-batch, on the last pipeline stage. `load`: its first phase,
    where there is one stage.
    """
    if can_compose(training):
        short = shortest_stack(spec.layers)
        return _upon(load, *map(_unnumbered, _short(spec, training, 0, short).evaluate()))
    stage = training.layout.pipeline - 1
    pattern = find_pattern(stage_layers(spec, training, stage))
    if pattern.repeats == 1:
        return _unnumbered(Step(spec, training, stage).evaluate()[-1])
    few, more = (
        _unnumbered(_short(spec, training, stage, pattern.layers(repeats)).evaluate()[-1]) for repeats in (_FEW, _MORE)
    )
    return _extrapolated(few, more, (pattern.repeats - _FEW) / (_MORE - _FEW))


def _upon(load: PhaseHeld, short_load: PhaseHeld, phase: PhaseHeld) -> PhaseHeld:
    """A phase that leaves nothing layer by layer, of a model that more is loaded of."""
    loaded_bytes = load.after_bytes - short_load.after_bytes
    keys = {**load.held, **phase.held}
    held = {key: load.held.get(key, 0) + phase.held.get(key, 0) - short_load.held.get(key, 0) for key in keys}
    return PhaseHeld(
        name=phase.name,
        peak_bytes=phase.peak_bytes + loaded_bytes,
        after_bytes=phase.after_bytes + loaded_bytes,
        held={key: size for key, size in held.items() if size},
    )


def find_pattern(layers: Sequence[Layer]) -> Pattern:
    """The pattern that leaves most layers out where two short steps are run; none where the whole step is quicker.

    Equal layers are one object.
    """
    best = Pattern(before=(), period=tuple(layers), repeats=1, after=())
    most = 0
    for length in range(1, min(_LONGEST_PERIOD, len(layers) // 2) + 1):
        start, end = _longest_stretch(layers, length)
        repeats = (end - start) // length
        saved = (repeats - _FEW - _MORE) * length - (len(layers) - repeats * length)
        if saved > most:
            most = saved
            stop = start + repeats * length
            best = Pattern(
                before=tuple(layers[:start]),
                period=tuple(layers[start : start + length]),
                repeats=repeats,
                after=tuple(layers[stop:]),
            )
    return best


def stage_layers(spec: ModelSpec, training: TrainingSpec, stage: int) -> Sequence[Layer]:
    """The layers of one pipeline stage."""
    size = ceil_div(spec.num_layers, training.layout.pipeline)
    return spec.layers[stage * size : (stage + 1) * size]


def _longest_stretch(layers: Sequence[Layer], length: int) -> tuple[int, int]:
    """From where to where every layer is the one `length` before it."""
    best, start = (0, 0), 0
    for position in range(length, len(layers) + 1):
        if position == len(layers) or layers[position] is not layers[position - length]:
            if position - start > best[1] - best[0]:
                best = (start, position)
            start = position - length + 1
    return best


def _short(spec: ModelSpec, training: TrainingSpec, stage: int, layers: tuple[Layer, ...]) -> Step:
    """The step of a model in which every pipeline stage has these layers."""
    return Step(replace(spec, layers=layers * training.layout.pipeline), training, stage)


def _windows(step: Ran, pattern: Pattern, repeats: int, *, with_held: bool) -> list[PhaseHeld]:
    """The parts of a short step in which all moments grow alike with the number of repeats.

    Of each pass: the first repeat with what comes before, the second, the last but one, the last with what comes after.
    With three repeats the one in the middle is two of these; with five the one in the middle is none.
    """
    marks, count = step.device.marks, len(pattern.layers(repeats))
    inner = [len(pattern.before) + len(pattern.period) * number for number in range(1, repeats)]
    forward = [marks[number - 1] for number in (*inner, count)]
    backward = [marks[2 * count - number - 1] for number in reversed(inner)]
    phases = step.device.phases([*forward, *backward], with_held=with_held)
    load, *rest = [_unnumbered(each) for each in phases]
    ahead, loss = rest[:repeats], rest[repeats]
    back, last = rest[repeats + 1 : -1], rest[-1]
    chosen = [0, 1, repeats - 2, repeats - 1]
    return [load, *(ahead[each] for each in chosen), loss, *(back[each] for each in chosen), last]


def _whole_spare_bytes(training: TrainingSpec, pattern: Pattern, performed: Callable[[int], Ran]) -> int:
    """What the allocator keeps beyond the peak of the whole step, by short steps with so many repeats."""
    spare_bytes = _spare_bytes(performed(_MORE))
    if training.checkpointing != "none":
        return spare_bytes
    further = (pattern.repeats - _FEW) / (_MORE - _FEW)
    return spare_bytes + round(max(0, spare_bytes - _spare_bytes(performed(_FEW))) * (further - 1))


def _spare_bytes(step: Ran) -> int:
    """What the allocator keeps beyond the peak of what is allocated."""
    return reserved_bytes(step) - max(each.peak_bytes for each in step.device.phases(with_held=False))


def _extrapolated(few: PhaseHeld, more: PhaseHeld, further: float) -> PhaseHeld:
    def grown(first: int, second: int) -> int:
        return round(first + (second - first) * further)

    held: Held = {}
    for key in {**few.held, **more.held}:
        size = grown(few.held.get(key, 0), more.held.get(key, 0))
        if size:
            held[key] = size
    return PhaseHeld(
        name=few.name,
        peak_bytes=grown(few.peak_bytes, more.peak_bytes),
        after_bytes=grown(few.after_bytes, more.after_bytes),
        held=held,
    )


def _unnumbered(phase: PhaseHeld) -> PhaseHeld:
    held: Held = {}
    for (category, name), size in phase.held.items():
        key = (category, _NUMBER.sub("", name) or "layers")
        held[key] = held.get(key, 0) + size
    return replace(phase, held=held)
