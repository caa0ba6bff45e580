"""What transformers saves of a model that bitsandbytes quantized: NF4, and the rows of LLM.int8().

| tensor | shape | type |
|---|---|---|
| `weight` | of NF4: O x I / 2, 1 | uint8, the first code in the high bits, over rows one after another |
| `weight.absmax` | blocks of 64 | float32 |
| `weight.quant_map` | 16 | float32, the table |
| `weight.quant_state.bitsandbytes__nf4` | bytes | uint8: JSON of the type, the block, the dtype and the shape |
| `weight` | of LLM.int8(): O x I | int8 |
| `SCB` | O | float32, the largest weight of a row |
| `weight_format` | one | uint8: 0, rows |

Written without the library, which only reading needs. Source: bitsandbytes 0.50, QuantState.as_dict and Int8Params;
transformers 5.23, integrations/bitsandbytes.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memplan.errors import UsageError
from memplan.quantize.elements import NF4, values
from memplan.quantize.formats import Layout
from memplan.quantize.grid import PART_OF_ABSMAX, Quantized

NF4_STATE = "weight.quant_state.bitsandbytes__nf4"
_BLOCK = 64
_OUTLIER = 6.0  # inputs as large as this are multiplied in 16 bit


def check(layout: Layout) -> None:
    """Refuse what the library has no layout for. Raises: UsageError."""
    if layout.method.format != "bitsandbytes":
        raise UsageError(f"--format bitsandbytes has no {layout.method.name}", hint="--method nf4 or --method llm-int8")
    if layout.widths:
        raise UsageError("--format bitsandbytes holds one width", hint="use --format compressed-tensors")


def pack(found: Quantized) -> dict[str, Tensor]:
    """Return the tensors that hold a matrix, by the last parts of their names."""
    if found.grid.element == "int":
        rows = (found.code_OI.to(torch.int16) - 128).to(torch.int8)
        return {"weight": rows, "SCB": _largest(found.scales.scale_OG[:, 0]), "weight_format": torch.tensor(0).byte()}
    code = found.code_OI.reshape(-1, 2)
    state = {
        "quant_type": "nf4",
        "blocksize": _BLOCK,
        "dtype": str(found.grid.scale_dtype).removeprefix("torch."),
        "shape": list(found.code_OI.shape),
    }
    return {
        "weight": ((code[:, 0] << 4) | code[:, 1])[:, None].contiguous(),
        "weight.absmax": found.scales.scale_OG.flatten().clone(),
        "weight.quant_map": torch.tensor(NF4),
        NF4_STATE: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def unpack(tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Return the weights (O x I, float32) that a reader computes."""
    if "SCB" in tensors:
        return tensors["weight"].to(torch.float32) * (tensors["SCB"] * PART_OF_ABSMAX)[:, None]
    packed = tensors["weight"].flatten()
    code_XS = torch.stack([packed >> 4, packed & 15], dim=-1).reshape(-1, _BLOCK)
    return values(code_XS, "nf4").mul_(tensors["weight.absmax"][:, None]).reshape(state_shape(tensors[NF4_STATE]))


def shape(stored: Mapping[str, tuple[int, ...]], layout: Layout) -> tuple[int, int]:
    """Return O and I of a layer from the shapes of its tensors; of NF4 its state says it."""
    num_out, num_in = stored["weight"]
    return num_out, num_in


def state_shape(state: Tensor) -> tuple[int, int]:
    """Return O and I from the state of an NF4 layer."""
    num_out, num_in = json.loads(bytes(state.tolist()))["shape"]
    return num_out, num_in


def quantization_config(layout: Layout) -> dict[str, Any]:
    """Return what config.json says of the weights."""
    four = layout.bits == 4
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": four,
        "load_in_8bit": not four,
        "_load_in_4bit": four,
        "_load_in_8bit": not four,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_threshold": _OUTLIER,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_skip_modules": list(layout.kept),
    }


def _largest(scale_O: Tensor) -> Tensor:
    """The largest weight of each row, from which a reader computes the same scale to the last bit."""
    near_O = scale_O / PART_OF_ABSMAX
    for candidate_O in (torch.nextafter(near_O, torch.zeros_like(near_O)), torch.nextafter(near_O, near_O * 2)):
        near_O = torch.where(near_O * PART_OF_ABSMAX == scale_O, near_O, candidate_O)
    return near_O
