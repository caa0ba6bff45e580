"""A model shared by several processes: replicated (DDP) or cut into shards (FSDP2), as PyTorch does it.

Collectives run on gloo on the CPU and on NCCL on GPUs.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed

from memplan.errors import MissingExtra
from memplan.profile.request import ProfileRequest
from memplan.profile.subject import Subject
from memplan.records import replace


@contextlib.contextmanager
def among_ranks(request: ProfileRequest) -> Iterator[None]:
    """Be one of the processes that torchrun started, on a device of its own."""
    if request.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(1)
    distributed.init_process_group("nccl" if request.device == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def shared(subject: Subject, request: ProfileRequest) -> Subject:
    """The subject as one rank runs it. Raises: MissingExtra for a torch that cannot."""
    if request.sharing == "ddp":
        return replace(subject, model=_replicated(subject))
    if request.sharing == "fsdp":
        _cut(subject)
    return subject


def _replicated(subject: Subject) -> Any:
    """DistributedDataParallel, that says of itself what the model takes."""
    plain = torch.nn.parallel.DistributedDataParallel

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return plain.forward(self, *args, **kwargs)

    wrapped = functools.wraps(type(subject.model).forward)(forward)
    return type("Replicated", (plain,), {"forward": wrapped})(subject.model)


def _cut(subject: Subject) -> None:
    """fully_shard every layer, then what is around them."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise MissingExtra("--fsdp needs torch 2.6 or newer", hint="pip install -U torch") from None
    kind = torch.device(subject.device).type
    mesh = distributed.init_device_mesh(kind, (distributed.get_world_size(),))
    for layer in _layers(subject.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(subject.model, mesh=mesh)


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of the lists of equal layers that a model is made of, the outermost ones."""
    lists = [each for name, each in model.named_modules() if isinstance(each, torch.nn.ModuleList) and len(each) > 1]
    inside = {id(child) for each in lists for layer in each for child in layer.modules()}
    return [layer for each in lists if id(each) not in inside for layer in each]
