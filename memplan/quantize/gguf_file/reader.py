"""A GGUF read back as the checkpoint that it was made from, so that what is judged is what llama.cpp will load."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from memplan.quantize.checkpoint import Checkpoint
from memplan.quantize.gguf_file.families import Family
from memplan.quantize.gguf_file.writer import names_in_file, turned_back


class GgufCheckpoint(Checkpoint):
    """The weights in a GGUF as float32, under the names of the checkpoint in `source`."""

    def __init__(self, path: Path, source: Path, family: Family) -> None:
        super().__init__(source)
        self._family = family
        self._written = names_in_file(family, self)
        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def read(self, name: str) -> Tensor:
        """Return one tensor as llama.cpp computes it."""
        if name not in self._written:
            return super().read(name)
        found = self._tensors[self._written[name]]
        value = np.array(gguf.quants.dequantize(found.data, found.tensor_type), dtype=np.float32)
        return turned_back(torch.from_numpy(value).reshape(self.shapes[name]), self._family.turned_heads(name))
