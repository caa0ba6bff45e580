"""The inputs of a block for every batch of windows, in a file or in memory.

Axes: B windows of a batch, N tokens of a window, H hidden features.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from memplan.errors import CorruptFile

_AFRESH = "start over with --force"


class Activations:
    """Batches of the same window length, one after another in a file of raw numbers; the last batch may be smaller.

    The file is written under a temporary name and renamed when it is whole, so that a run which dies leaves the file
    of the block before, and a block can read the file that its outputs replace. Without `path` the batches are kept in
    memory. What the system has free holds the file as well, and takes it back when something else needs the room.
    """

    def __init__(self, path: Path | None, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
        self.path = path
        self.shapes = shapes
        self.dtype = dtype
        self._kept: list[Tensor] = []
        self._offsets = [0]
        for shape in shapes:
            self._offsets.append(self._offsets[-1] + torch.Size(shape).numel() * dtype.itemsize)

    @property
    def total_bytes(self) -> int:
        """The size of all batches."""
        return self._offsets[-1]

    def write(self, batches: Iterator[Tensor]) -> None:
        """Write all batches, then give the file its name."""
        if self.path is None:
            for index, batch_BNH in enumerate(batches):
                self._kept[index : index + 1] = [batch_BNH]
            return
        waiting = self.path.with_name(self.path.name + ".part")
        with waiting.open("wb") as file:
            for batch_BNH in batches:
                batch_BNH = batch_BNH.to("cpu", self.dtype).contiguous()
                file.write(memoryview(batch_BNH.view(torch.uint8).numpy()).cast("B"))
            file.flush()
            os.fsync(file.fileno())
        waiting.replace(self.path)

    def check(self) -> None:
        """Raises: CorruptFile when the file is not as long as its batches are."""
        if self.path is None:
            return
        size = self.path.stat().st_size if self.path.is_file() else -1
        if size != self.total_bytes:
            raise CorruptFile(f"{self.path} has {size} bytes; expected {self.total_bytes}", hint=_AFRESH)

    def read(self, index: int) -> Tensor:
        """Return one batch (B x N x H)."""
        if self.path is None:
            return self._kept[index]
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            data = bytearray(self._offsets[index + 1] - self._offsets[index])
            if file.readinto(data) != len(data):
                raise CorruptFile(f"{self.path} ends early", hint=_AFRESH)
        return torch.frombuffer(data, dtype=self.dtype).reshape(self.shapes[index])

    def __len__(self) -> int:
        return len(self.shapes)
