"""compressed-tensors: `pack-quantized` for weights alone, `int-quantized` where activations are rounded too.

| tensor | shape | type |
|---|---|---|
| `weight_packed` | O x ceil(I * bits / 32) | int32, codes less 2**(bits - 1), 0 first in the low bits |
| `weight_scale` | O x G | the model's |
| `weight_zero_point` | ceil(O * bits / 32) x G | int32, asymmetric grids alone |
| `weight_shape` | 2 | int64: O, I |
| `weight` | O x I | int8, in place of `weight_packed` under `int-quantized` |

Source: compressed-tensors 0.20, compressors and quantization_config. Before 0.20, widths that do not divide 32 were
padded to whole codes in a word; 2, 4 and 8 bits are the same in every release.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memplan.errors import MissingExtra, UsageError
from memplan.quantize.formats import Layout
from memplan.quantize.grid import Grid, Quantized, Scales, dequantize


def check(layout: Layout) -> None:
    """Refuse what readers of this format refuse. Raises: UsageError."""
    if layout.method.activation_bits < 16 and not (layout.symmetric and layout.bits == 8 and not layout.group_size):
        raise UsageError(
            "activations are rounded to 8 bits beside weights of 8 bits, symmetric, by row only",
            hint="leave --bits, --group-size and --asymmetric out, or add --weights-only",
        )


def pack(found: Quantized) -> dict[str, Tensor]:
    """Return the tensors that hold a matrix, by the last part of their names."""
    half = 1 << (found.grid.bits - 1)
    signed_OI = (found.code_OI.to(torch.int16) - half).to(torch.int8)
    scale_OG = found.scales.scale_OG.to(found.grid.scale_dtype)
    if found.grid.activation_bits < 16:
        return {"weight": signed_OI, "weight_scale": scale_OG}
    pack_to_int32, _ = _packing()
    tensors = {
        "weight_packed": pack_to_int32(signed_OI, found.grid.bits),
        "weight_scale": scale_OG,
        "weight_shape": torch.tensor(list(found.code_OI.shape)),
    }
    if not found.grid.symmetric:
        zero_OG = (found.scales.zero_OG - half).to(torch.int8)
        tensors["weight_zero_point"] = pack_to_int32(zero_OG, found.grid.bits, packed_dim=0).contiguous()
    return tensors


def unpack(tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the weights (O x I, float32) that a reader computes."""
    scale_OG = tensors["weight_scale"].to(torch.float32)
    if "weight_packed" not in tensors:
        return tensors["weight"].to(torch.float32) * scale_OG
    _, unpack_from_int32 = _packing()
    half = 1 << (layout.bits - 1)
    shape = torch.Size(tensors["weight_shape"].tolist())
    code_OI = unpack_from_int32(tensors["weight_packed"], layout.bits, shape).to(torch.int16) + half
    zero_OG = torch.full_like(scale_OG, half)
    if "weight_zero_point" in tensors:
        packed = tensors["weight_zero_point"]
        zero_OG = unpack_from_int32(packed, layout.bits, scale_OG.shape, packed_dim=0).to(torch.float32) + half
    grid = Grid(bits=layout.bits, group_size=layout.group_size, symmetric=layout.symmetric)
    return dequantize(code_OI, Scales(scale_OG, zero_OG), grid)


def shape(stored: Mapping[str, tuple[int, ...]], layout: Layout) -> tuple[int, int]:
    """Return O and I of a layer from the shapes of its tensors; `weight_shape` says it where codes are packed."""
    num_out, num_in = stored["weight"]
    return num_out, num_in


def quantization_config(layout: Layout) -> dict[str, Any]:
    """Return what config.json says of the weights."""
    activations = layout.method.activation_bits < 16
    weights: dict[str, Any] = {
        "num_bits": layout.bits,
        "type": "int",
        "symmetric": layout.symmetric,
        "strategy": "group" if layout.group_size else "channel",
        "group_size": layout.group_size or None,
        "dynamic": False,
        "observer": "minmax",
    }
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    form = "int-quantized" if activations else "pack-quantized"
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": inputs if activations else None,
                "output_activations": None,
                "format": form,
            }
        },
        "ignore": list(layout.kept),
    }


def _packing() -> tuple[Any, Any]:
    """The library's own packing, wherever this release of it keeps it."""
    try:
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
    except ImportError:
        try:
            from compressed_tensors.compressors.quantized_compressors.pack_quantized import (
                pack_to_int32,
                unpack_from_int32,
            )
        except ImportError:
            raise MissingExtra(
                "--format compressed-tensors needs compressed-tensors", hint="pip install 'memplan[quantize]'"
            ) from None
    return pack_to_int32, unpack_from_int32
