"""The allocations and frees of a step of many layers, from those of a step of a few that has all their neighbourhoods.

A step is cut where a layer's forward or backward pass ends. The part between two cuts takes and frees the same blocks
wherever its layer has the same neighbours: blocks of its own, of the layers beside it, and of the loss. So a part
stands for every such layer; blocks that it frees of another part are found again from that part's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from memplan.budget.training.composed import neighbourhoods, takes_for_all
from memplan.budget.training.device import Block, Device
from memplan.budget.training.step import Step
from memplan.domain.model import Layer
from memplan.domain.training import TrainingSpec
from memplan.records import dataclass

_FORWARD, _LOSS, _LOSS_BACKWARD, _BACKWARD = range(4)


class NotAlike(Exception):
    """Something is freed that is not where the layers' neighbourhoods have it."""


Alike = tuple[tuple[object, ...], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stitched:
    """A step that was put together."""

    training: TrainingSpec
    device: Device


class _Part:
    """What happens between two cuts: n takes block n of `blocks`, ~n frees it. `outer` are frees of another part's
    blocks: at which event, of which pass, of a layer so much further, and the block as `Alike`.
    """

    __slots__ = ("alike", "blocks", "events", "outer")

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.events: list[int] = []
        self.outer: list[tuple[int, int, int, Alike]] = []
        self.alike: dict[tuple[object, ...], list[int]] = {}

    def take(self, block: Block) -> int:
        """One more block; its place among them."""
        place = len(self.blocks)
        self.blocks.append(block)
        self.events.append(place)
        self.alike.setdefault(_kind(block), []).append(place)
        return place

    def tell(self, place: int) -> Alike:
        """What kind of block it is, and which of that kind, from the end."""
        kind = _kind(self.blocks[place])
        places = self.alike[kind]
        return kind, places.index(place) - len(places)

    def find(self, alike: Alike) -> int:
        """The place of such a block. Raises: NotAlike."""
        kind, from_end = alike
        places = self.alike.get(kind, ())
        if len(places) < -from_end:
            raise NotAlike
        return places[from_end]


def _kind(block: Block) -> tuple[object, ...]:
    return block.size_bytes, block.stream, block.category


class Stitches:
    """The parts of a step of a few layers that has run. Raises: NotAlike."""

    def __init__(self, step: Step, layers: Sequence[Layer]) -> None:
        self._step, self._layers = step, layers
        device, count = step.device, len(layers)
        self._events = device.events()
        _, forward, backward, optimizer = device.starts
        cuts = [forward, *device.marks[:count], backward, *device.marks[count : 2 * count - 1], optimizer]
        if len(cuts) != 2 * count + 2:
            raise NotAlike
        self._owners: dict[int, tuple[int, int]] = {}
        self._parts: list[_Part] = []
        for start, stop in pairwise(cuts):
            self._parts.append(self._part(start, stop))
        around = neighbourhoods(layers)
        self._forward = dict(zip(around, self._parts[:count], strict=True))
        self._backward = dict(zip(reversed(around), self._parts[count + 1 :], strict=True))
        self._taken, self._kept, self._last = self._optimizer(optimizer)

    def _place(self, index: int) -> tuple[int, int]:
        """The pass that a part is of, and its layer."""
        count = len(self._layers)
        if index == count:
            return _LOSS, 0
        return (_FORWARD, index) if index < count else (_BACKWARD, 2 * count - index)

    def _part(self, start: int, stop: int) -> _Part:
        part, index = _Part(), len(self._parts)
        which, layer = self._place(index)
        blocks = self._step.device.blocks
        for number in self._events[start:stop]:
            if number >= 0:
                self._owners[number] = index, part.take(blocks[number])
                continue
            owner, place = self._owner(~number)
            if owner == index:
                part.events.append(~place)
                continue
            other, its_layer = self._place(owner)
            further = its_layer - layer
            if which == _LOSS:
                further = 0 if its_layer == 0 else its_layer - len(self._layers)  # from the first, or behind the last
            elif other == _BACKWARD and further > 1 and layer == 0 and its_layer == len(self._layers) - 1:
                other = _LOSS_BACKWARD  # handed on from layer to layer, and freed by what is behind the first
            elif other != _LOSS and abs(further) > 1:
                raise NotAlike
            part.outer.append((len(part.events), other, further, self._parts[owner].tell(place)))
            part.events.append(0)
        return part

    def _owner(self, number: int) -> tuple[int, int]:
        if number not in self._owners:
            raise NotAlike  # of what was loaded nothing goes
        return self._owners[number]

    def _optimizer(self, start: int) -> tuple[list[Block], list[list[int]], list[tuple[int, Alike]]]:
        """The optimizer's step: what it takes and frees in this order, then the gradients that each part of the
        backward pass left, then what is left of other parts.
        """
        events, blocks = self._events[start:], self._step.device.blocks
        taken = [number for number in events if number >= 0]
        if list(events[: 2 * len(taken)]) != [*taken, *(~number for number in taken)]:
            raise NotAlike
        count = len(self._layers)
        kept: list[list[int]] = [[] for _ in range(count)]
        last: list[tuple[int, Alike]] = []
        latest = count + 1
        for number in events[2 * len(taken) :]:
            owner, place = self._owner(~number)
            if owner <= count:
                last.append((owner, self._parts[owner].tell(place)))
            elif last or owner < latest:
                raise NotAlike
            else:
                kept[owner - count - 1].append(place)
                latest = owner
        if any(owner not in (0, count - 1, count) for owner, _ in last):
            raise NotAlike
        return [blocks[number] for number in taken], kept, last

    def stitched(self, layers: Sequence[Layer]) -> Stitched:
        """The step of these layers. Raises: NotAlike, also where they have other neighbourhoods."""
        training, count, around = self._step.training, len(layers), neighbourhoods(layers)
        if not {*around} <= self._forward.keys():
            raise NotAlike
        blocks = self._loaded(layers)
        events = list(range(len(blocks)))
        starts, marks, bases = [len(events)], [], []
        parts = [*(self._forward[each] for each in around), self._parts[len(self._layers)]]
        parts += [self._backward[each] for each in reversed(around)]
        for index, part in enumerate(parts):
            if index == count + 1:
                starts.append(len(events))
            bases.append(len(blocks))
            start, base = len(events), len(blocks)
            events += [base + each if each >= 0 else each - base for each in part.events]
            blocks += part.blocks
            for position, which, further, alike in part.outer:
                at = _where(which, index, further, count)
                events[start + position] = ~(bases[at] + parts[at].find(alike))
            if index not in (count, 2 * count):
                marks.append(len(events))
        starts.append(len(events))
        self._stepped(layers, blocks, events, bases, parts)
        names = ("load", "forward", "backward", "optimizer")
        phases = list(zip(names, (0, *starts), strict=True))
        return Stitched(training=training, device=Device.made_of(blocks, events, phases, marks))

    def _loaded(self, layers: Sequence[Layer]) -> list[Block]:
        """Weights of all layers where those of the few are, and their states."""
        units = {id(layer): unit for (unit, _), layer in zip(self._step.stage.layers, self._layers, strict=True)}
        weights = [block for layer in layers for block in units[id(layer)].weights]
        states = [block for layer in layers for block in units[id(layer)].states]
        own = [unit for unit, _ in self._step.stage.layers]
        regions = {block.number: weights for unit in own for block in unit.weights}
        regions |= {block.number: states for unit in own for block in unit.states}
        found: list[Block] = []
        before: list[Block] | None = None
        for block in self._step.device.blocks[: self._step.device.starts[1]]:
            region = regions.get(block.number)
            if region is None:
                found.append(block)
            elif region is not before:
                found += region
            before = region
        return found

    def _stepped(
        self, layers: Sequence[Layer], blocks: list[Block], events: list[int], bases: list[int], parts: list[_Part]
    ) -> None:
        """The optimizer's step at the end of the events."""
        count, taken = len(layers), self._taken
        if takes_for_all(self._step.training):
            stage = self._step.stage
            units = {id(layer): unit for (unit, _), layer in zip(stage.layers, self._layers, strict=True)}
            sizes = iter(taken)
            own = {id(unit): [next(sizes) for _ in unit.trained] for unit in stage.units}
            outside = stage.units[: -len(self._layers)]
            taken = [block for unit in outside for block in own[id(unit)]]
            taken += [block for layer in layers for block in own[id(units[id(layer)])]]
        base = len(blocks)
        blocks += taken
        events += range(base, len(blocks))
        events += [~number for number in range(base, len(blocks))]
        kept = dict(zip((id(part) for part in self._parts[len(self._layers) + 1 :]), self._kept, strict=True))
        for index in range(count + 1, 2 * count + 1):
            events += [~(bases[index] + place) for place in kept[id(parts[index])]]
        for owner, alike in self._last:
            index = owner if owner == 0 else count + owner - len(self._layers)
            events.append(~(bases[index] + parts[index].find(alike)))


def _where(which: int, index: int, further: int, count: int) -> int:
    """Which of the parts of so many layers another one names."""
    if which == _FORWARD:
        if index == count:
            return 0 if further == 0 else count + further
        return (index if index < count else 2 * count - index) + further
    if which == _BACKWARD:
        return index - further
    return count if which == _LOSS else count + 1
