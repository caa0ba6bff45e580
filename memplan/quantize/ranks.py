"""Several processes at one quantization: each sees its share of the calibration, and rounds its share of the layers.

What layers read in one process all are handed, batch by batch, and each makes its part of the sums over tokens, so that
every one works with the statistics of all, and with the same that a process alone has. What one has rounded the others
are handed too. A process alone is one of one, and nothing is exchanged.

Axes: N rows, I in features, O out features, G groups.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from memplan.records import dataclass

# One process may factorise a large Hessian while the others wait for it.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """The items that are this process's to work on."""
        return list(items[self.rank :: self.size])

    def add_up(self, *values: Tensor) -> None:
        """Make every tensor the sum of all processes' tensors, in place."""
        for value in values if self.size > 1 else ():
            dist.all_reduce(value)

    def in_turns(self, items: Iterable[Any]) -> Iterator[Any]:
        """The parts of some work that are this process's; forth and back, for later parts are smaller."""
        for place, item in enumerate(items):
            turn, owner = divmod(place, self.size)
            if (self.size - 1 - owner if turn % 2 else owner) == self.rank:
                yield item

    def of_each(self, tensors: Sequence[Tensor], device: torch.device | str) -> Iterator[list[Tensor]]:
        """The tensors of one process after another, on all of them; a process may have none.

        Batches are dealt out in turns (`share`), so that round by round these are all batches in their order.
        """
        for owner in range(self.size):
            found, _ = self.hand_on(owner, tensors, {"device": device})
            if found:
                yield found

    def missing(self, num_runs: int, device: torch.device | str) -> int:
        """How many runs fewer than the first process this one has: after its own it only hears of others' batches."""
        if self.size == 1:
            return 0
        most = torch.tensor([num_runs], dtype=torch.int64, device=device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most) - num_runs

    def total(self, count: int, device: torch.device) -> int:
        """The sum of a number over all processes."""
        value = torch.tensor([count], dtype=torch.int64, device=device)
        self.add_up(value)
        return int(value)

    def rows_of_all(self, rows_NI: Tensor) -> Tensor:
        """The rows of all processes, one process after the other."""
        if self.size == 1:
            return rows_NI
        counts = [torch.zeros(1, dtype=torch.int64, device=rows_NI.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([rows_NI.shape[0]], dtype=torch.int64, device=rows_NI.device))
        most = max(int(count) for count in counts)
        padded_NI = torch.zeros((most, *rows_NI.shape[1:]), dtype=rows_NI.dtype, device=rows_NI.device)
        padded_NI[: rows_NI.shape[0]] = rows_NI
        found = [torch.empty_like(padded_NI) for _ in range(self.size)]
        dist.all_gather(found, padded_NI)
        return torch.cat([each[: int(count)] for each, count in zip(found, counts, strict=True)])

    def hand_on(self, owner: int, tensors: Sequence[Tensor], facts: dict[str, Any]) -> tuple[list[Tensor], Any]:
        """Return the owner's tensors and facts on every process; what others pass is not looked at."""
        if self.size == 1:
            return list(tensors), facts
        said: list[Any] = [None]
        if self.rank == owner:
            said = [{**facts, "tensors": [(value.shape, value.dtype) for value in tensors]}]
        dist.broadcast_object_list(said, src=owner)
        known = said[0]
        found = [value.contiguous() for value in tensors]  # what is sent is memory as it lies
        if self.rank != owner:
            found = [torch.empty(shape, dtype=dtype, device=facts["device"]) for shape, dtype in known["tensors"]]
        for value in found:
            dist.broadcast(value, src=owner)
        return found, known

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the processes that were started together (RANK and WORLD_SIZE), or be alone."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device != "cpu":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    meeting = os.environ.get("MEMPLAN_MEETING")
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl",
        init_method=f"file://{meeting}" if meeting else "env://",
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    try:
        yield Ranks(rank, size)
    finally:
        dist.destroy_process_group()
