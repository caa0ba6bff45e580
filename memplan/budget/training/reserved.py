"""What the caching allocator takes of the device for steps: their allocations and frees, in their order and streams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from memplan.budget.caching_allocator.blocks import DeviceFull
from memplan.budget.caching_allocator.kinds import make_allocator
from memplan.budget.caching_allocator.settings import AllocatorSettings
from memplan.budget.caching_allocator.simulator import CachingAllocator
from memplan.budget.training.device import Device
from memplan.budget.training.step import Step
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingSpec
from memplan.records import replace


class Ran(Protocol):
    """A step that has run: its settings, and the device on which it did."""

    @property
    def training(self) -> TrainingSpec: ...
    @property
    def device(self) -> Device: ...


def reserved_bytes(step: Ran) -> int:
    """The most that a step reserves, on a device without a limit."""
    allocator = _allocator(step.training)
    _replay(allocator, step.device, step.device.events())
    return allocator.peak_reserved_bytes


def reserved_over_lengths(
    spec: ModelSpec, training: TrainingSpec, lengths: Iterable[int], *, capacity_bytes: int | None = None
) -> int:
    """The most that is reserved over steps of these lengths, one after the other on one device.

    A longer sample than those before it finds no cached block that is large enough, or finds it split for something
    smaller that is still alive, so that segments are added: more than the longest step alone takes. Where the device is
    full and the cache has nothing left to return, what was reserved until then.
    """
    allocator = _allocator(training, capacity_bytes)
    try:
        for device, events in _steps(spec, training, lengths):
            _replay(allocator, device, events)
    except DeviceFull:
        pass
    return allocator.peak_reserved_bytes


def _steps(spec: ModelSpec, training: TrainingSpec, lengths: Iterable[int]) -> Iterator[tuple[Device, tuple[int, ...]]]:
    """Each step with its events; what the first one loads stays for those that follow."""
    is_first = True
    for tokens in lengths:
        step = Step(spec, replace(training, sequence_tokens=tokens))
        loaded = step.device.position
        step.perform()
        yield step.device, step.device.events()[0 if is_first else loaded :]
        is_first = False


def _allocator(training: TrainingSpec, capacity_bytes: int | None = None) -> CachingAllocator:
    settings = AllocatorSettings(expandable_segments=training.expandable_segments)
    return make_allocator(settings, capacity_bytes=capacity_bytes)


def _replay(allocator: CachingAllocator, device: Device, events: Iterable[int]) -> None:
    """Frees of blocks that are not among the events, which were loaded before, are left out."""
    live = {}
    blocks, allocate, free = device.blocks, allocator.allocate, allocator.free
    for number in events:
        if number >= 0:
            block = blocks[number]
            if block.size_bytes:
                live[number] = allocate(block.size_bytes, block.stream)
        elif ~number in live:
            free(live.pop(~number))
