"""One replica of DistributedDataParallel on the meta device, where its reducer, written in C++, cannot run.

What it makes is made here in the same order: flat copies by which the first rank's weights are sent around, the buckets
that gradients are summed in, and with `bucket_view` gradients that lie in those buckets. The sizes of buckets come from
the reducer's own function. As long as no order of gradients is known, the first step, they are all in one bucket of
each type; from the second step on the buckets follow the order in which gradients came.

Source: torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp and comm.cpp of PyTorch 2.4 to 2.13.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import distributed

from memplan.profile.recorder import Recorder
from memplan.units import MIB

_FIRST_BUCKET_BYTES, _BUCKET_BYTES = MIB, 25 * MIB
_BROADCAST_BYTES = 250 * MIB
_MOST_IN_FLIGHT = 2


class Replica:
    """Watches a model while it is trained, and holds the buckets of its gradients."""

    def __init__(self, model: torch.nn.Module, recorder: Recorder, *, bucket_view: bool) -> None:
        self._recorder = recorder
        self._bucket_view = bucket_view
        self._model = model
        self._trained = [each for each in model.parameters() if each.requires_grad]
        self._came: list[torch.Tensor] = []
        self._is_ordered = False
        self._buckets: list[torch.Tensor] = []
        self._views: dict[int, torch.Tensor] = {}
        with recorder.library("DDP broadcast", ""):
            _broadcast([*model.parameters(), *model.buffers()])
        self._make_buckets(self._trained, [sys.maxsize])
        model.register_forward_pre_hook(self._before_forward)
        for each in self._trained:
            each.register_post_accumulate_grad_hook(self._ready)

    def _before_forward(self, model: torch.nn.Module, args: Any) -> None:
        """Take the first rank's buffers; once the order of gradients is known, make the buckets again."""
        if not torch.is_grad_enabled():
            return
        if self._came and not self._is_ordered:
            self._make_buckets(self._came, [_FIRST_BUCKET_BYTES, _BUCKET_BYTES])
            self._is_ordered = True
        with self._recorder.library("DDP broadcast", ""):
            _broadcast(list(self._model.buffers()))

    def _ready(self, parameter: torch.Tensor) -> None:
        if not self._is_ordered:
            self._came.append(parameter)
        if self._bucket_view:
            with self._recorder.library("DDP bucket", ""):
                parameter.grad = self._views[id(parameter)]

    def _make_buckets(self, parameters: Sequence[torch.Tensor], limits: list[int]) -> None:
        self._buckets.clear()
        self._views.clear()
        with torch.no_grad(), self._recorder.library("DDP bucket", ""):
            for bucket in _assigned(parameters, limits):
                count = sum(each.numel() for each in bucket)
                flat = torch.empty(count, dtype=bucket[0].dtype, device=bucket[0].device)
                self._buckets.append(flat)
                start = 0
                for each in bucket if self._bucket_view else ():
                    self._views[id(each)] = flat[start : start + each.numel()].view(each.shape)
                    start += each.numel()


def _broadcast(tensors: Sequence[torch.Tensor]) -> None:
    """Send tensors around as flat copies, of which two are alive at once. One that is alone is sent as it is."""
    in_flight: deque[torch.Tensor] = deque()
    with torch.no_grad():
        for bucket in _assigned(tensors, [_BROADCAST_BYTES]):
            if len(in_flight) == _MOST_IN_FLIGHT:
                in_flight.popleft()
            in_flight.append(torch.cat([each.reshape(-1) for each in bucket]) if len(bucket) > 1 else bucket[0])


def _assigned(tensors: Sequence[torch.Tensor], limits: list[int]) -> Iterable[list[torch.Tensor]]:
    """The tensors in buckets, as the reducer shares them out."""
    if not tensors:
        return
    groups, _ = distributed._compute_bucket_assignment_by_size(list(tensors), limits, [False] * len(tensors))
    for group in groups:
        yield [tensors[index] for index in group]
