"""compressed-tensors: integers packed or, where activations are rounded too, as bytes; floats of 8 and 4 bits.

| tensor | shape | type |
|---|---|---|
| `weight_packed` | O x ceil(I * bits / 32) | int32, codes less 2**(bits - 1), 0 first in the low bits |
| `weight_scale` | O x G | the model's |
| `weight_zero_point` | ceil(O * bits / 32) x G | int32, asymmetric grids alone |
| `weight_shape` | 2 | int64: O, I |
| `weight` | O x I | int8 or e4m3, in place of `weight_packed` under `int-quantized` and `float-quantized` |
| `weight_scale` | of e4m3: O x 1, 1, or blocks x blocks | the model's; of blocks float32 |
| `input_scale` | 1 | the model's, where inputs have a calibrated scale |
| `weight_packed` | of e2m1: O x I / 2 | uint8, the first in the low bits |
| `weight_scale` | of e2m1: O x G | `nvfp4`: e4m3; `mxfp4`: uint8, the power of two plus 127 |
| `weight_global_scale` | 1 | float32, what `nvfp4` divides its scales by |

Source: compressed-tensors 0.20, compressors, presets and quantization_config. Before 0.20, widths that do not divide
32 were padded to whole codes in a word; 2, 4 and 8 bits are the same in every release.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memplan.errors import MissingExtra, UsageError
from memplan.quantize.elements import values
from memplan.quantize.formats import Layout
from memplan.quantize.grid import Grid, Quantized, Scales, dequantize, whole_scale
from memplan.quantize.rows import row_slices
from memplan.quantize.width import Width


def check(layout: Layout) -> None:
    """Refuse what readers of this format refuse. Raises: UsageError."""
    if layout.method.format != "compressed-tensors":
        raise UsageError(
            f"--format compressed-tensors has no {layout.method.name}", hint=f"--format {layout.method.format}"
        )
    rounds = layout.method.element == "int" and layout.method.activation_bits < 16
    if rounds and not (layout.symmetric and layout.bits == 8 and not layout.group_size):
        raise UsageError(
            "activations are rounded to 8 bits beside weights of 8 bits, symmetric, by row only",
            hint="leave --bits, --group-size and --no-symmetric out, or add --weights-only",
        )


def pack(found: Quantized) -> dict[str, Tensor]:
    """Return the tensors that hold a matrix, by the last part of their names."""
    if found.grid.element == "e4m3":
        return _pack_floats(found)
    if found.grid.element == "e2m1":
        return _pack_small_floats(found)
    half = 1 << (found.grid.bits - 1)
    signed_OI = found.code_OI.sub(half).view(torch.int8)  # 8 bits wrap around as they do in int8
    scale_OG = found.scales.scale_OG.to(found.grid.scale_dtype)
    if found.grid.activation_bits < 16:
        return {"weight": signed_OI, "weight_scale": scale_OG}
    pack_to_int32, _ = _packing()
    tensors = {
        "weight_packed": torch.cat(
            [pack_to_int32(signed_OI[rows], found.grid.bits) for rows in row_slices(signed_OI.shape[0])]
        ),
        "weight_scale": scale_OG,
        "weight_shape": torch.tensor(list(found.code_OI.shape)),
    }
    if not found.grid.symmetric:
        zero_OG = (found.scales.zero_OG - half).to(torch.int8)
        tensors["weight_zero_point"] = pack_to_int32(zero_OG, found.grid.bits, packed_dim=0).contiguous()
    return tensors


def unpack(tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the weights (O x I, float32) that a reader computes."""
    if layout.method.element == "e4m3":
        return _unpack_floats(tensors, layout)
    if layout.method.element == "e2m1":
        return _unpack_small_floats(tensors)
    scale_OG = tensors["weight_scale"].to(torch.float32)
    if "weight_packed" not in tensors:
        return tensors["weight"].to(torch.float32) * scale_OG
    _, unpack_from_int32 = _packing()
    half = 1 << (layout.bits - 1)
    shape = torch.Size(tensors["weight_shape"].tolist())
    packed_OW = tensors["weight_packed"]
    parts = [
        unpack_from_int32(packed_OW[rows], layout.bits, torch.Size((len(packed_OW[rows]), shape[1])))
        for rows in row_slices(shape[0])
    ]
    code_OI = torch.cat(parts).view(torch.uint8).add_(half)
    zero_OG = torch.full_like(scale_OG, half)
    if "weight_zero_point" in tensors:
        packed = tensors["weight_zero_point"]
        zero_OG = unpack_from_int32(packed, layout.bits, scale_OG.shape, packed_dim=0).to(torch.float32) + half
    grid = Grid(bits=layout.bits, group_size=layout.group_size, symmetric=layout.symmetric)
    return dequantize(code_OI, Scales(scale_OG, zero_OG), grid)


def shape(stored: Mapping[str, tuple[int, ...]], layout: Layout) -> tuple[int, int]:
    """Return O and I of a layer from the shapes of its tensors; `weight_shape` says it where integers are packed."""
    if "weight_packed" in stored:
        num_out, num_pairs = stored["weight_packed"]
        return num_out, 2 * num_pairs
    num_out, num_in = stored["weight"]
    return num_out, num_in


def quantization_config(layout: Layout) -> dict[str, Any]:
    """Return what config.json says of the weights."""
    by_width: dict[Width, list[str]] = {}
    for module, width in layout.widths.items():
        by_width.setdefault(width, []).append(module)
    # A layer is matched by its name before it is matched by its class.
    groups = [_group(layout, ["Linear"]), *(_group(layout.of(names[0]), names) for names in by_width.values())]
    return {
        "quant_method": "compressed-tensors",
        "format": format_of(layout),
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": list(layout.kept),
    }


def _group(layout: Layout, targets: list[str]) -> dict[str, Any]:
    return {
        "targets": targets,
        "weights": _weights(layout),
        "input_activations": _inputs(layout),
        "output_activations": None,
        "format": format_of(layout),
    }


def format_of(layout: Layout) -> str:
    """What compressed-tensors calls the way that tensors are laid out."""
    method = layout.method
    if method.element == "e2m1":
        return "nvfp4-pack-quantized" if method.scale_type == "e4m3" else "mxfp4-pack-quantized"
    if method.element == "e4m3":
        return "float-quantized"
    return "int-quantized" if method.activation_bits < 16 else "pack-quantized"


def _weights(layout: Layout) -> dict[str, Any]:
    method = layout.method
    weights: dict[str, Any] = {
        "num_bits": layout.bits,
        "type": "int" if method.element == "int" else "float",
        "symmetric": layout.symmetric,
        "strategy": "group" if layout.group_size else "channel",
        "group_size": layout.group_size or None,
        "dynamic": False,
        "observer": "minmax",
    }
    if method.rows_per_scale == 0:
        weights["strategy"] = "tensor"
    elif method.rows_per_scale > 1:
        weights |= {"strategy": "block", "group_size": None}
        weights["block_structure"] = [method.rows_per_scale, layout.group_size]
    if method.element == "e2m1":
        weights["strategy"] = "tensor_group" if method.scale_type == "e4m3" else "group"
        weights["scale_dtype"] = "torch.float8_e4m3fn" if method.scale_type == "e4m3" else "torch.uint8"
    return weights


def _inputs(layout: Layout) -> dict[str, Any] | None:
    method = layout.method
    if method.activations == "none":
        return None
    inputs: dict[str, Any] = {
        "num_bits": 8,
        "type": "int" if method.element == "int" else "float",
        "symmetric": True,
        "strategy": method.activations,
        "dynamic": method.activations != "tensor",
    }
    if method.activations == "group":
        inputs["group_size"] = layout.group_size
    return inputs


def _pack_floats(found: Quantized) -> dict[str, Tensor]:
    grid = found.grid
    scale_OG = found.scales.scale_OG.to(torch.float32 if grid.scale_type == "float32" else grid.scale_dtype)
    tensors = {"weight": found.code_OI.view(torch.float8_e4m3fn), "weight_scale": scale_OG}
    if grid.rows_per_scale == 0:
        tensors["weight_scale"] = scale_OG[0, :1].clone()
    elif grid.rows_per_scale > 1:
        tensors["weight_scale"] = scale_OG[:: grid.rows_per_scale].contiguous()
    if found.input_scale:
        tensors["input_scale"] = torch.tensor([found.input_scale], dtype=grid.scale_dtype)
    return tensors


def _unpack_floats(tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    weight_OI, scale = tensors["weight"].to(torch.float32), tensors["weight_scale"].to(torch.float32)
    num_out, num_in = weight_OI.shape
    if layout.method.rows_per_scale > 1:
        scale = scale.repeat_interleave(layout.method.rows_per_scale, 0)[:num_out]
        scale = scale.repeat_interleave(layout.group_size, 1)[:, :num_in]
    return weight_OI * scale


def _pack_small_floats(found: Quantized) -> dict[str, Tensor]:
    scale_OG, code_OI = found.scales.scale_OG, found.code_OI
    tensors = {"weight_packed": code_OI[:, ::2] | (code_OI[:, 1::2] << 4)}
    if found.grid.scale_type == "e8m0":
        tensors["weight_scale"] = (torch.log2(scale_OG).round_() + 127).to(torch.uint8)
        return tensors
    whole = whole_scale(found.grid)
    tensors["weight_scale"] = (scale_OG * whole).to(torch.float8_e4m3fn)
    tensors["weight_global_scale"] = torch.tensor([whole], dtype=torch.float32)
    return tensors


def _unpack_small_floats(tensors: Mapping[str, Tensor]) -> Tensor:
    packed, scale_OG = tensors["weight_packed"], tensors["weight_scale"]
    num_out = packed.shape[0]
    code_OI = torch.stack([packed & 15, packed >> 4], dim=-1).reshape(num_out, -1)
    if scale_OG.dtype == torch.uint8:
        scale_OG = torch.exp2(scale_OG.to(torch.float32) - 127)
    else:
        scale_OG = scale_OG.to(torch.float32) / tensors["weight_global_scale"]
    value_OGS = values(code_OI, "e2m1").reshape(num_out, scale_OG.shape[1], -1)
    return value_OGS.mul_(scale_OG[..., None]).reshape(num_out, -1)


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
