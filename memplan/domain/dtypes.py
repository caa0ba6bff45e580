"""Element types, under the names that config files and checkpoint headers give them."""

from __future__ import annotations

from enum import Enum

from memplan.errors import UsageError


class DType(str, Enum):
    """An element type. `bits` is its width; sub-byte types are packed."""

    F64 = "float64"
    F32 = "float32"
    F16 = "float16"
    BF16 = "bfloat16"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    E8M0 = "e8m0"
    FP6 = "fp6"
    FP4 = "fp4"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    UINT8 = "uint8"
    INT4 = "int4"
    BOOL = "bool"

    @property
    def bits(self) -> int:
        return _BITS[self]

    @property
    def is_float(self) -> bool:
        """Whether a model can be computed in this type (16, 32 or 64 bit float)."""
        return self in (DType.F64, DType.F32, DType.F16, DType.BF16)


_BITS = {
    DType.F64: 64,
    DType.F32: 32,
    DType.F16: 16,
    DType.BF16: 16,
    DType.FP8_E4M3: 8,
    DType.FP8_E5M2: 8,
    DType.E8M0: 8,
    DType.FP6: 6,
    DType.FP4: 4,
    DType.INT64: 64,
    DType.INT32: 32,
    DType.INT16: 16,
    DType.INT8: 8,
    DType.UINT8: 8,
    DType.INT4: 4,
    DType.BOOL: 8,
}

_COMPUTE_NAMES = {
    "auto": None,
    "float16": DType.F16,
    "half": DType.F16,
    "fp16": DType.F16,
    "f16": DType.F16,
    "bfloat16": DType.BF16,
    "bf16": DType.BF16,
    "float32": DType.F32,
    "float": DType.F32,
    "fp32": DType.F32,
    "f32": DType.F32,
}


def parse_compute_dtype(text: str) -> DType | None:
    """Return the type that a model computes in, or None for `auto` (the checkpoint's own).

    Raises: UsageError for a name that is no compute type.
    """
    try:
        return _COMPUTE_NAMES[text.strip().lower().removeprefix("torch.")]
    except KeyError:
        raise UsageError(f"unknown dtype: `{text}`", hint="use auto, float16, bfloat16 or float32") from None
