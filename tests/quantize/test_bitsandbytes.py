"""NF4 and LLM.int8() as files: what is written is what the library itself would write and read."""

from __future__ import annotations

import json

import pytest
import torch

from memplan.quantize.formats import Layout, format_named
from memplan.quantize.formats.bitsandbytes import NF4_STATE
from memplan.quantize.grid import Grid, Quantized, round_to_nearest
from memplan.quantize.methods import METHODS

bitsandbytes = format_named("bitsandbytes")


def rounded(name: str) -> tuple[torch.Tensor, Quantized, Layout]:
    """Weights, and what becomes of them."""
    method = METHODS[name]
    weight_OI = (torch.randn((48, 128), generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    grid = Grid(
        bits=method.bits,
        group_size=method.group_size,
        element=method.element,
        scale_type=method.scale_type,
        activation_bits=method.activation_bits,
    )
    layout = Layout(method=method, bits=method.bits, group_size=method.group_size, symmetric=True, damping=0.0)
    return weight_OI, round_to_nearest(weight_OI, grid), layout


@pytest.mark.parametrize("name", ["nf4", "llm-int8"])
def test_weights_come_back_bit_for_bit(name: str) -> None:
    weight_OI, found, layout = rounded(name)
    tensors = bitsandbytes.pack(found)
    assert torch.equal(bitsandbytes.unpack(tensors, layout), found.dequantize())
    error = float((found.dequantize() - weight_OI.float()).norm() / weight_OI.float().norm())
    assert error < (0.1 if name == "nf4" else 0.01)


def test_the_first_of_two_codes_lies_in_the_high_bits_and_the_state_says_what_was_packed() -> None:
    _, found, _ = rounded("nf4")
    tensors = bitsandbytes.pack(found)
    assert int(tensors["weight"][0, 0]) == int(found.code_OI[0, 0]) * 16 + int(found.code_OI[0, 1])
    state = json.loads(bytes(tensors[NF4_STATE].tolist()))
    assert state == {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [48, 128]}


@pytest.mark.parametrize("name", ["nf4", "llm-int8"])
def test_the_library_makes_the_same_of_the_same_weights(name: str) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight_OI, found, _ = rounded(name)
    tensors = bitsandbytes.pack(found)
    if name == "llm-int8":
        rows, largest_O, _ = functional.int8_vectorwise_quant(weight_OI.to(torch.float16))
        read_OI = functional.int8_vectorwise_dequant(tensors["weight"], tensors["SCB"])
        assert torch.allclose(read_OI, found.dequantize(), rtol=1e-6)  # it multiplies in another order
        assert float((rows == tensors["weight"]).float().mean()) > 0.99  # ties in half precision
        assert torch.allclose(largest_O, tensors["SCB"], rtol=1e-3)
        return
    packed, state = functional.quantize_4bit(weight_OI, blocksize=64, quant_type="nf4")
    assert torch.equal(packed, tensors["weight"])
    assert torch.equal(state.absmax, tensors["weight.absmax"])
    assert torch.equal(functional.dequantize_4bit(packed, state), found.dequantize(torch.bfloat16))
    saved = state.as_dict(packed=True)
    assert torch.equal(saved["quant_state.bitsandbytes__nf4"], tensors[NF4_STATE])
    assert torch.equal(saved["quant_map"], tensors["weight.quant_map"])
