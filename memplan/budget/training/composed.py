"""The phases of a step of a deep model from a step of a few of its layers.

What a layer takes and leaves in either pass depends on its kind and on its neighbours', of which even stacks that mix
kinds have a handful. A short stack that has each such neighbourhood is run once; over the whole stack what layers leave
is summed up, and what they take at most lies on top of it. Every byte is that of the whole step.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.budget.training.device import PhaseHeld, block_bytes
from memplan.budget.training.optimizer import temporary_sizes
from memplan.budget.training.stage import Stage
from memplan.budget.training.step import Step
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.training import TrainingSpec
from memplan.records import replace

Neighbourhood = tuple[int | None, int, int | None]


def can_compose(training: TrainingSpec) -> bool:
    """Whether nothing but the optimizer's temporaries is of all layers together: no buffer over all gradients, no other
    micro-batches, nothing that waits for the end of the backward pass.
    """
    is_alone = training.layout.pipeline == 1 and training.accumulation == 1 and not training.keeps_gradients
    waits = training.sharding == "fsdp1" and training.method != "full"
    return is_alone and training.sharding in ("none", "fsdp1", "fsdp2") and training.float8 is None and not waits


def shortest_stack(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Some of the layers, in an order in which every neighbourhood of the whole stack occurs and no other."""
    around = neighbourhoods(layers)
    chosen: list[Layer] = []
    seen: set[Neighbourhood] = set()
    position = 0
    while position < len(layers):
        unseen = next((each for each in range(position, len(layers)) if around[each] not in seen), len(layers) - 1)
        # On to the nearest place before it with the same layer, behind the same one.
        while around[unseen][:2] != around[position][:2]:
            unseen -= 1
        seen.add(around[unseen])
        chosen.append(layers[unseen])
        position = unseen + 1
    return tuple(chosen)


def composed_phases(spec: ModelSpec, step: Step, short: tuple[Layer, ...]) -> tuple[PhaseHeld, ...] | None:
    """The phases of a step of the model, without what is held, from the step of a short stack that has run; None where
    the first layers are not asked for gradients.
    """
    device, count = step.device, len(short)
    if len(device.marks) < 2 * count - 1:
        return None
    load, *parts = device.phases(device.marks[: 2 * count - 1], with_held=False)
    levels = [load.after_bytes, *(each.after_bytes for each in parts)]
    passed = [
        (each.peak_bytes - before, each.after_bytes - before) for before, each in zip(levels, parts, strict=False)
    ]
    around, whole = neighbourhoods(short), neighbourhoods(spec.layers)
    forward = dict(zip(around, passed[:count], strict=True))
    backward = dict(zip(reversed(around), passed[count + 1 : -1], strict=True))
    loaded_bytes, temporary_bytes = _further(step.stage, spec.layers, short)
    level = load.after_bytes + loaded_bytes
    found = [replace(load, peak_bytes=load.peak_bytes + loaded_bytes, after_bytes=level)]
    passes = {
        "forward": [*(forward[each] for each in whole), passed[count]],
        "backward": [backward[each] for each in reversed(whole)],
    }
    for name, each in passes.items():
        found.append(_phase(name, level, each))
        level = found[-1].after_bytes
    peak_bytes = level + passed[-1][0] + temporary_bytes
    after_bytes = parts[-1].after_bytes + loaded_bytes
    return (*found, PhaseHeld(name="optimizer", peak_bytes=peak_bytes, after_bytes=after_bytes, held={}))


def _phase(name: str, level: int, parts: list[tuple[int, int]]) -> PhaseHeld:
    """Parts one after the other, each the most that it adds to the level before it and what it leaves."""
    highest = level
    for peak_bytes, left_bytes in parts:
        highest = max(highest, level + peak_bytes)
        level += left_bytes
    return PhaseHeld(name=name, peak_bytes=highest, after_bytes=level, held={})


def _further(stage: Stage, layers: Sequence[Layer], short: Sequence[Layer]) -> tuple[int, int]:
    """What is loaded for all layers beyond the short stack's, and what the optimizer takes for them."""
    training = stage.training
    takes_all = takes_for_all(training)
    loaded_bytes: dict[int, int] = {}
    temporary_bytes: dict[int, int] = {}
    for (unit, _), layer in zip(stage.layers, short, strict=True):
        sizes = temporary_sizes(training, [each.size_bytes for each in unit.trained]) if takes_all else []
        loaded_bytes[id(layer)] = sum(each.size_bytes for each in (*unit.weights, *unit.states))
        temporary_bytes[id(layer)] = sum(map(block_bytes, sizes))

    def further(each_bytes: dict[int, int]) -> int:
        return sum(each_bytes[id(each)] for each in layers) - sum(each_bytes[id(each)] for each in short)

    return further(loaded_bytes), further(temporary_bytes)


def takes_for_all(training: TrainingSpec) -> bool:
    """Whether the optimizer takes something for each weight, all of it together."""
    is_elsewhere = training.offload_optimizer or training.optimizer_in_backward
    return not is_elsewhere and len(temporary_sizes(training, [1.0, 1.0])) == 2


def neighbourhoods(layers: Sequence[Layer]) -> list[Neighbourhood]:
    """For each layer the one before, itself, and the one after. Equal layers are one object."""
    kinds = [id(each) for each in layers]
    return list(zip([None, *kinds[:-1]], kinds, [*kinds[1:], None], strict=True))
