"""What the headers of a checkpoint say: every stored tensor's name, element type, shape and bytes.

This is the ground for exact weight bytes. It knows nothing of models: names are as stored, roles come later.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, cast

from memplan.domain.dtypes import DType
from memplan.records import dataclass


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint. `shape` is in PyTorch's order; `dtype` is the format's own name for the type."""

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All tensors of a checkpoint, over all of its files.

    `files` names the files read, `metadata` is the free text that the format carries, `notes` what a person should know
    about how the files fit together.
    """

    tensors: Mapping[str, StoredTensor]
    files: tuple[str, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @property
    def num_elements(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors.values())


# Source: the data types of the safetensors format, version 0.8. Widths in bits; sub-byte types are packed.
SAFETENSORS_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

_DTYPES: Mapping[str, DType] = {
    "BOOL": DType.BOOL,
    "F4": DType.FP4,
    "F6_E2M3": DType.FP6,
    "F6_E3M2": DType.FP6,
    "U8": DType.UINT8,
    "I8": DType.INT8,
    "F8_E5M2": DType.FP8_E5M2,
    "F8_E4M3": DType.FP8_E4M3,
    "F8_E8M0": DType.E8M0,
    "F8_E4M3FNUZ": DType.FP8_E4M3,
    "F8_E5M2FNUZ": DType.FP8_E5M2,
    "I16": DType.INT16,
    "U16": DType.INT16,
    "F16": DType.F16,
    "BF16": DType.BF16,
    "I32": DType.INT32,
    "U32": DType.INT32,
    "F32": DType.F32,
    "C64": DType.F64,
    "F64": DType.F64,
    "I64": DType.INT64,
    "U64": DType.INT64,
}


def stored_dtype(tensor: StoredTensor) -> DType:
    """The domain's type of the same width; unsigned and complex types become the signed or real type as wide."""
    return _DTYPES[tensor.dtype]


def to_json(inventory: Inventory) -> object:
    """Return an inventory as JSON values."""
    tensors = [[name, each.dtype, each.shape, each.size_bytes] for name, each in inventory.tensors.items()]
    return {
        "files": inventory.files,
        "metadata": dict(inventory.metadata),
        "notes": inventory.notes,
        "tensors": tensors,
    }


def from_json(value: object) -> Inventory | None:
    """Return the inventory that `to_json` wrote; None for anything else."""
    try:
        raw = cast("dict[str, Any]", value)
        tensors = {
            str(name): StoredTensor(_known(dtype), tuple(map(int, shape)), int(size_bytes))
            for name, dtype, shape, size_bytes in raw["tensors"]
        }
        return Inventory(
            tensors=tensors, files=tuple(raw["files"]), metadata=dict(raw["metadata"]), notes=tuple(raw["notes"])
        )
    except (KeyError, TypeError, ValueError):
        return None


def _known(dtype: str) -> str:
    if dtype not in SAFETENSORS_BITS:
        raise ValueError(dtype)
    return dtype
