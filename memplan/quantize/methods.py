"""The methods by name: what each does to a block, and its defaults. Torch is not known here.

| method | scaling moved | rounding | defaults |
|---|---|---|---|
| `rtn` | none | to nearest | 4 bits, groups of 128 |
| `gptq` | none | GPTQ | 4 bits, groups of 128, symmetric |
| `awq` | AWQ | to nearest, ranges clipped | 4 bits, groups of 128, asymmetric |
| `awq+gptq` | AWQ | GPTQ | 4 bits, groups of 128, symmetric |
| `auto` | AWQ | GPTQ | 4, 8 or 16 bits by layer, what fits a size with the least damage |
| `int8` | SmoothQuant | to nearest | 8 bits, whole rows, symmetric, activations by token |
| `fp8` | none | to nearest | e4m3 floats, whole rows, activations by token |
| `fp8-static` | none | to nearest | e4m3 floats, one scale for a matrix and one for its calibrated input |
| `fp8-block` | none | to nearest | e4m3 floats, blocks of 128 x 128, activations by token and 128 features |
| `nvfp4` | none | GPTQ | e2m1 floats in groups of 16, scales of 8 bits under one for the matrix |
| `mxfp4` | none | GPTQ | e2m1 floats in groups of 32, scales that are powers of two |
| `gguf:TYPE` | none | to nearest | a type of llama.cpp's for the whole file (`gguf_file`) |
| `nf4` | none | to nearest | quantiles of a normal distribution in blocks of 64 |
| `llm-int8` | none | to nearest | 8 bits, whole rows; inputs by token but for outliers (arXiv 2208.07339) |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from memplan.errors import UsageError, did_you_mean
from memplan.quantize.gguf_file.types import FILE_TYPES
from memplan.records import dataclass

_USUAL_GGUF = "q8_0"
Scaling = Literal["none", "awq", "smooth"]
Rounding = Literal["nearest", "clipped", "gptq"]
Element = Literal["int", "e4m3", "e2m1", "nf4"]
# How scales are stored: in the model's type, as 8-bit floats under one of 32 bits for the matrix, as powers of two.
# `absmax` is the largest weight of a row over the largest integer; `ggml` is whatever a type of llama.cpp's has.
ScaleType = Literal["model", "float32", "e4m3", "e8m0", "absmax", "ggml"]
# What an engine scales together when it rounds inputs: a token, the whole tensor by a calibrated scale, 128 features; a
# token without its outliers, which stay in 16 bit.
Activations = Literal["none", "token", "tensor", "group", "inliers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What a method does. `activation_bits` is the width that an engine rounds inputs to, 16 for none.

    `element` is what a code stands for, and `rows_per_scale` how many rows share a scale (0: all of them). `format` is
    the layout that holds it unless another is asked for.
    """

    name: str
    scaling: Scaling
    rounding: Rounding
    bits: int
    group_size: int
    symmetric: bool
    activation_bits: int = 16
    element: Element = "int"
    rows_per_scale: int = 1
    scale_type: ScaleType = "model"
    activations: Activations = "none"
    format: str = "compressed-tensors"

    @property
    def needs_calibration(self) -> bool:
        """Whether the method looks at what the weights are multiplied by."""
        return self.scaling != "none" or self.rounding != "nearest" or self.activations == "tensor"


def _int4(name: str, scaling: Scaling, rounding: Rounding, *, symmetric: bool = True) -> Method:
    return Method(name=name, scaling=scaling, rounding=rounding, bits=4, group_size=128, symmetric=symmetric)


def _int8(name: str, **others: Any) -> Method:
    weights: dict[str, Any] = {"rounding": "nearest", "bits": 8, "group_size": 0, "symmetric": True}
    return Method(name=name, activation_bits=8, **weights, **others)


def _float8(name: str, *, group_size: int = 0, **others: Any) -> Method:
    weights: dict[str, Any] = {"bits": 8, "group_size": group_size, "symmetric": True, "element": "e4m3"}
    return Method(name=name, scaling="none", rounding="nearest", activation_bits=8, **weights, **others)


def _float4(name: str, *, group_size: int, scale_type: ScaleType) -> Method:
    weights: dict[str, Any] = {"bits": 4, "group_size": group_size, "symmetric": True, "element": "e2m1"}
    return Method(name=name, scaling="none", rounding="gptq", scale_type=scale_type, **weights)


def _gguf(kind: str) -> Method:
    if kind not in FILE_TYPES:
        hint = did_you_mean(kind, list(FILE_TYPES)) or f"use one of {', '.join(FILE_TYPES)}"
        raise UsageError(f"not a type of GGUF that is written here: `{kind}`", hint=hint)
    plain: dict[str, Any] = {"scaling": "none", "rounding": "nearest", "group_size": 0, "symmetric": True}
    return Method(name=f"gguf:{kind}", bits=FILE_TYPES[kind].bits, scale_type="ggml", format="gguf", **plain)


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        _int4("rtn", "none", "nearest"),
        _int4("gptq", "none", "gptq"),
        _int4("awq", "awq", "clipped", symmetric=False),
        _int4("awq+gptq", "awq", "gptq"),
        _int8("int8", scaling="smooth", activations="token"),
        _int4("auto", "awq", "gptq"),
        _float8("fp8", activations="token"),
        _float8("fp8-static", rows_per_scale=0, activations="tensor"),
        _float8("fp8-block", group_size=128, rows_per_scale=128, scale_type="float32", activations="group"),
        _float4("nvfp4", group_size=16, scale_type="e4m3"),
        _float4("mxfp4", group_size=32, scale_type="e8m0"),
        Method(
            name="nf4",
            scaling="none",
            rounding="nearest",
            bits=4,
            group_size=64,
            symmetric=True,
            element="nf4",
            scale_type="float32",
            format="bitsandbytes",
        ),
        _int8("llm-int8", scaling="none", activations="inliers", scale_type="absmax", format="bitsandbytes"),
    )
}


def method_named(name: str) -> Method:
    """Return a method. Raises: UsageError for an unknown one."""
    if name.partition(":")[0] == "gguf":
        return _gguf(name.partition(":")[2].lower() or _USUAL_GGUF)
    if name not in METHODS:
        hint = did_you_mean(name, list(METHODS)) or f"use one of {', '.join(METHODS)}, gguf:{_USUAL_GGUF}"
        raise UsageError(f"unknown method: `{name}`", hint=hint)
    return METHODS[name]
