"""What a quantization_config says is read back as it was written, and what is not understood is left to others."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from memplan.quantize.formats import Layout, format_named
from memplan.quantize.formats.reading import layout_of
from memplan.quantize.methods import method_named


@pytest.mark.parametrize(
    ("name", "method", "bits", "group_size", "symmetric"),
    [
        ("compressed-tensors", "rtn", 4, 128, True),
        ("compressed-tensors", "rtn", 4, 32, False),
        ("compressed-tensors", "int8", 8, 0, True),
        ("compressed-tensors", "fp8", 8, 0, True),
        ("compressed-tensors", "fp8-static", 8, 0, True),
        ("compressed-tensors", "fp8-block", 8, 128, True),
        ("compressed-tensors", "nvfp4", 4, 16, True),
        ("compressed-tensors", "mxfp4", 4, 32, True),
        ("bitsandbytes", "nf4", 4, 64, True),
        ("bitsandbytes", "llm-int8", 8, 0, True),
        ("gptq", "rtn", 3, 128, True),
        ("gptq", "rtn", 8, 0, True),
        ("awq", "rtn", 4, 64, False),
    ],
)
def test_a_layout_is_read_back_from_the_config_it_wrote(
    name: str, method: str, bits: int, group_size: int, symmetric: bool
) -> None:
    layout = Layout(method=method_named(method), bits=bits, group_size=group_size, symmetric=symmetric, damping=0.0)
    assert layout_of(format_named(name).quantization_config(layout)) == (layout, name)


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "fp8"},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq_v2"},
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {}}},
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
    ],
)
def test_a_layout_that_is_not_read_here_is_left_to_its_library(config: dict[str, Any]) -> None:
    assert layout_of(config) is None
