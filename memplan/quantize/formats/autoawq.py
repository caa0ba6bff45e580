"""The GEMM layout that AutoAWQ began and transformers, vLLM and SGLang read (`quant_method: awq`).

| tensor | shape | type |
|---|---|---|
| `qweight` | I x O / 8 | int32, eight out features in the order 0 2 4 6 1 3 5 7 from the low bits |
| `qzeros` | G x O / 8 | int32, zero points in the same order |
| `scales` | G x O | float16 |

Source: AutoAWQ 0.2.9, the packing of its GEMM layer. 4 bits only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memplan.errors import UsageError
from memplan.quantize.formats import Layout
from memplan.quantize.formats.words import pack_words, unpack_words
from memplan.quantize.grid import Quantized
from memplan.quantize.rows import row_slices

scale_dtype = torch.float16
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS = 4


def check(layout: Layout) -> None:
    """Refuse what readers of this format refuse. Raises: UsageError."""
    if layout.widths:
        raise UsageError("--format awq holds one width", hint="use --format compressed-tensors")
    if layout.bits != _BITS or layout.method.activation_bits < 16 or layout.method.element != "int":
        raise UsageError(
            f"--format awq holds integer weights of 4 bits, not {layout.method.name} of {layout.bits}",
            hint="use --format compressed-tensors",
        )
    if not layout.group_size:
        raise UsageError("--format awq has groups, not whole rows", hint="give --group-size 128")


def pack(found: Quantized) -> dict[str, Tensor]:
    """Return the tensors that hold a matrix, by the last part of their names."""
    return {
        "qweight": pack_words(_ordered(found.code_OI.t()), _BITS, dim=1),
        "qzeros": pack_words(_ordered(found.scales.zero_OG.t()), _BITS, dim=1),
        "scales": found.scales.scale_OG.t().to(torch.float16).contiguous(),
    }


def unpack(tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the weights (O x I, float32) that a reader computes."""
    code_IO = _in_order(unpack_words(tensors["qweight"], _BITS, dim=1))
    zero_GO = _in_order(unpack_words(tensors["qzeros"], _BITS, dim=1)).to(torch.float32)
    scale_GO = tensors["scales"].to(torch.float32)
    size = code_IO.shape[0] // scale_GO.shape[0]
    weight_OI = torch.empty(code_IO.t().shape, dtype=torch.float32, device=code_IO.device)
    for part in row_slices(code_IO.shape[0]):
        group_I = torch.arange(part.start, part.stop, device=code_IO.device) // size
        weight_OI[:, part] = ((code_IO[part].to(torch.float32) - zero_GO[group_I]) * scale_GO[group_I]).t()
    return weight_OI


def shape(stored: Mapping[str, tuple[int, ...]], layout: Layout) -> tuple[int, int]:
    """Return O and I of a layer from the shapes of its tensors."""
    num_in, columns = stored["qweight"]
    return columns * 32 // _BITS, num_in


def quantization_config(layout: Layout) -> dict[str, Any]:
    """Return what config.json says of the weights."""
    return {
        "quant_method": "awq",
        "bits": _BITS,
        "group_size": layout.group_size,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": list(layout.kept) or None,
    }


def _ordered(value_XO: Tensor) -> Tensor:
    rows, columns = value_XO.shape
    return value_XO.reshape(rows, columns // 8, 8)[:, :, list(_ORDER)].reshape(rows, columns)


def _in_order(value_XO: Tensor) -> Tensor:
    rows, columns = value_XO.shape
    back = [_ORDER.index(place) for place in range(8)]
    return value_XO.reshape(rows, columns // 8, 8)[:, :, back].reshape(rows, columns)
