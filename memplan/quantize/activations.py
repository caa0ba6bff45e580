"""The inputs of a block for every batch of calibration windows, in memory or in a file.

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
    of the block before. With `in_memory` the batches are kept as well and the file is only for going on after a crash.
    """

    def __init__(self, path: Path, shapes: list[tuple[int, ...]], dtype: torch.dtype, *, in_memory: bool) -> None:
        self.path = path
        self.shapes = shapes
        self.dtype = dtype
        self._kept: list[Tensor] | None = [] if in_memory else None
        self._offsets = [0]
        for shape in shapes:
            self._offsets.append(self._offsets[-1] + torch.Size(shape).numel() * dtype.itemsize)

    @property
    def total_bytes(self) -> int:
        """The size of all batches."""
        return self._offsets[-1]

    def write(self, batches: Iterator[Tensor]) -> None:
        """Write all batches, then give the file its name."""
        waiting = self.path.with_name(self.path.name + ".part")
        if self._kept is not None:
            self._kept.clear()
        with waiting.open("wb") as file:
            for batch_BNH in batches:
                batch_BNH = batch_BNH.to("cpu", self.dtype).contiguous()
                file.write(memoryview(batch_BNH.view(torch.uint8).numpy()).cast("B"))
                if self._kept is not None:
                    self._kept.append(batch_BNH)
            file.flush()
            os.fsync(file.fileno())
        waiting.replace(self.path)

    def check(self) -> None:
        """Raises: CorruptFile when the file is not as long as its batches are."""
        size = self.path.stat().st_size if self.path.is_file() else -1
        if size != self.total_bytes:
            raise CorruptFile(f"{self.path} has {size} bytes; expected {self.total_bytes}", hint=_AFRESH)

    def read(self, index: int) -> Tensor:
        """Return one batch (B x N x H)."""
        if self._kept:
            return self._kept[index]
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            data = bytearray(self._offsets[index + 1] - self._offsets[index])
            if file.readinto(data) != len(data):
                raise CorruptFile(f"{self.path} ends early", hint=_AFRESH)
        return torch.frombuffer(data, dtype=self.dtype).reshape(self.shapes[index])

    def forget(self) -> None:
        """Let go of the memory; the file stays."""
        if self._kept is not None:
            self._kept.clear()

    def __len__(self) -> int:
        return len(self.shapes)
