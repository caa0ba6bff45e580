"""Quantized checkpoints: which reader understands which `quant_method`. A literal table, so that one is imported at a
time.

A method is one function here in a file of its kind, and one line of this table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from memplan.introspect.config import Config
from memplan.introspect.quantization.plan import QuantPlan

Reader = Callable[..., QuantPlan]

_HERE = "memplan.introspect.quantization"
READERS: Mapping[str, str] = {
    "aqlm": "weight_only:read_aqlm",
    "auto-gptq": "integer:read_gptq",
    "auto-round": "integer:read_auto_round",
    "awq": "integer:read_awq",
    "awq_marlin": "integer:read_awq",
    "bitnet": "weight_only:read_bitnet",
    "bitsandbytes": "weight_only:read_bitsandbytes",
    "compressed-tensors": "groups:read_compressed_tensors",
    "eetq": "weight_only:read_eetq",
    "fbgemm_fp8": "floats:read_fbgemm",
    "fouroversix": "weight_only:read_fp4",
    "fp8": "floats:read_fp8",
    "fp_quant": "weight_only:read_fp4",
    "gptq": "integer:read_gptq",
    "gptq_marlin": "integer:read_gptq",
    "higgs": "weight_only:read_higgs",
    "hqq": "weight_only:read_hqq",
    "inc": "integer:read_auto_round",
    "intel/auto-round": "integer:read_auto_round",
    "metal": "weight_only:read_metal",
    "mlx": "weight_only:read_mlx",
    "modelopt": "modelopt:read_modelopt",
    "modelopt_fp4": "modelopt:read_modelopt",
    "modelopt_mixed": "modelopt:read_modelopt",
    "modelopt_mxfp8": "modelopt:read_modelopt",
    "mxfp4": "floats:read_mxfp4",
    "mxfp8": "floats:read_mxfp8",
    "nvfp4": "weight_only:read_fp4",
    "quanto": "weight_only:read_quanto",
    "quark": "groups:read_quark",
    "sinq": "weight_only:read_hqq",
    "spqr": "weight_only:refuse",
    "torchao": "weight_only:read_torchao",
    "vptq": "weight_only:refuse",
}
# Readers that also look at the model's own config.
_WITH_MODEL = frozenset({"compressed-tensors", "fp8", "mlx", "modelopt", "modelopt_fp4"})


def read_plan(method: str, config: Config, model: Config | None) -> QuantPlan:
    """Return the plan of a quantization config by a method of `READERS`."""
    module, function = READERS[method].split(":")
    reader: Reader = getattr(importlib.import_module(f"{_HERE}.{module}"), function)
    return reader(config, model) if method in _WITH_MODEL else reader(config)
