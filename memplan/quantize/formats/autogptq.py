"""The layout that AutoGPTQ began and GPTQModel, transformers, vLLM and SGLang read (`quant_method: gptq`).

| tensor | shape | type |
|---|---|---|
| `qweight` | I * bits / 32 x O | int32, in feature 0 in the low bits |
| `qzeros` | G x O * bits / 32 | int32, zero points less 1 (`checkpoint_format: gptq`) or as they are (`gptq_v2`) |
| `scales` | G x O | float16 |
| `g_idx` | I | int32, the group of each in feature |

Source: AutoGPTQ 0.7.1 and GPTQModel 7.x, the packing of their linear layers. 3 bits are packed 32 codes in 3 words.
vLLM takes symmetric grids of 4 and 8 bits, and groups in order: since 0.32 no `desc_act` (vLLM PR 54809).
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


def check(layout: Layout) -> None:
    """Refuse what readers of this format refuse. Raises: UsageError."""
    if layout.widths:
        raise UsageError("--format gptq holds one width", hint="use --format compressed-tensors")
    if layout.method.activation_bits < 16 or layout.method.element != "int":
        raise UsageError("--format gptq holds integer weights alone", hint="use --format compressed-tensors")
    if layout.bits not in (2, 3, 4, 8):
        raise UsageError(f"--format gptq has no {layout.bits} bits", hint="use 2, 3, 4 or 8")


def pack(found: Quantized) -> dict[str, Tensor]:
    """Return the tensors that hold a matrix, by the last part of their names."""
    num_in = found.code_OI.shape[1]
    zero_GO = found.scales.zero_OG.t().to(torch.int64) - 1
    group = found.grid.group(num_in)
    return {
        "qweight": pack_words(found.code_OI.t(), found.grid.bits, dim=0),
        "qzeros": pack_words(zero_GO & found.grid.max_code, found.grid.bits, dim=1),
        "scales": found.scales.scale_OG.t().to(torch.float16).contiguous(),
        "g_idx": torch.arange(num_in, dtype=torch.int32) // group,
    }


def unpack(tensors: Mapping[str, Tensor], layout: Layout, *, stored_less: int = 1) -> Tensor:
    """Return the weights (O x I, float32) that a reader computes.

    `stored_less` is 1 where zero points are stored less one, 0 under `checkpoint_format: gptq_v2`.
    """
    code_IO = unpack_words(tensors["qweight"], layout.bits, dim=0)
    zero_GO = unpack_words(tensors["qzeros"], layout.bits, dim=1).to(torch.int64) + stored_less
    zero_GO &= (1 << layout.bits) - 1
    if layout.symmetric:
        zero_GO = torch.full_like(zero_GO, 1 << (layout.bits - 1))
    group_I = tensors["g_idx"].to(torch.int64)
    scale_GO = tensors["scales"].to(torch.float32)
    weight_OI = torch.empty(code_IO.t().shape, dtype=torch.float32, device=code_IO.device)
    for part in row_slices(code_IO.shape[0]):
        part_IO = (code_IO[part] - zero_GO[group_I[part]]).to(torch.float32) * scale_GO[group_I[part]]
        weight_OI[:, part] = part_IO.t()
    return weight_OI


def shape(stored: Mapping[str, tuple[int, ...]], layout: Layout) -> tuple[int, int]:
    """Return O and I of a layer from the shapes of its tensors."""
    rows, num_out = stored["qweight"]
    return num_out, rows * 32 // layout.bits


def quantization_config(layout: Layout) -> dict[str, Any]:
    """Return what config.json says of the weights. vLLM wants the first four keys, whatever they are."""
    return {
        "quant_method": "gptq",
        "bits": layout.bits,
        "group_size": layout.group_size or -1,
        "desc_act": False,
        "sym": layout.symmetric,
        "lm_head": False,
        "damp_percent": layout.damping,
        "true_sequential": True,
        "checkpoint_format": "gptq",
        "modules_in_block_to_quantize": None,
    }
