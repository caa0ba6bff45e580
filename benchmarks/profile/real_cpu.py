"""The bytes that the CPU allocator of PyTorch hands out and takes back, as its own profiler reports them.

The allocator tells the profiler of every block in C++, whoever asked for it: operators, autograd, what kernels take
inside. Nothing of memplan's recorder has a part in it.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from memplan.domain.timeline import Category, Phase
from memplan.profile.execute import settled
from memplan.profile.request import ProfileRequest
from memplan.profile.runs import run
from memplan.profile.subject import load_subject

_MARK = "memplan phase "


class Marks:
    """Stands where a recorder would, and records nothing but where phases begin."""

    def __init__(self) -> None:
        self.log = _NoLog()
        self.work = None

    def __enter__(self) -> Marks:
        return self

    def __exit__(self, *caught: object) -> None:
        pass

    def begin(self, phase: Phase, iteration: int = 0) -> None:
        gc.collect()
        with record_function(f"{_MARK}{phase} {iteration}"):
            pass

    def name_modules(self, model: Any) -> None:
        pass

    def hold(self, tensor: torch.Tensor, category: Category, **named: str) -> None:
        pass

    def classify(self, tensors: Any, category: Category) -> None:
        pass

    def spike(self, sizes_bytes: Any, operator: str) -> None:
        pass


class _NoLog:
    order: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


def real_peaks(request: ProfileRequest) -> dict[str, int]:
    """The most bytes that were taken at once in each phase of a real run, over what was taken before the model."""
    gc.collect()  # or what is left of others is given back in between, and counts against this run
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        with settled(request):
            subject = load_subject(request, runs_as="cpu")
            run(subject, Marks(), request)  # type: ignore[arg-type]
        del subject
    return _by_phase(profiler.profiler.kineto_results.events())


def _by_phase(events: Any) -> dict[str, int]:
    points: list[tuple[int, str, int]] = []
    for event in events:
        name = event.name()
        if name == "[memory]":
            points.append((event.start_ns(), "", event.nbytes()))
        elif name.startswith(_MARK):
            points.append((event.start_ns(), name.removeprefix(_MARK), 0))
    peaks: dict[str, int] = {}
    level, phase = 0, ""
    for _, name, size in sorted(points, key=lambda point: point[0]):
        phase = name or phase
        level += size
        if phase:
            peaks[phase] = max(peaks.get(phase, 0), level)
    return peaks
