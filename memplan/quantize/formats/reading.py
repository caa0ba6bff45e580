"""What a `quantization_config` says, where it is one of the layouts that are read here: ours, and others' alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.quantize.formats import Layout
from memplan.quantize.formats.compressed_tensors import format_of
from memplan.quantize.methods import method_named
from memplan.quantize.width import Width
from memplan.records import replace


def layout_of(config: Mapping[str, Any]) -> tuple[Layout, str] | None:
    """Return the layout and the name of its format; None for one that only its own library reads."""
    readers = {"compressed-tensors": _compressed_tensors, "gptq": _gptq, "awq": _awq, "bitsandbytes": _bitsandbytes}
    reader = readers.get(str(config.get("quant_method")))
    return reader(config) if reader else None


def _compressed_tensors(config: Mapping[str, Any]) -> tuple[Layout, str] | None:
    groups = list((config.get("config_groups") or {}).values())
    if not groups or groups[0].get("targets") != ["Linear"]:
        return None
    layout = _group(groups[0])
    if layout is None or format_of(layout) != config.get("format"):
        return None
    widths: dict[str, Width] = {}
    for group in groups[1:]:
        named = _group(group)
        if named is None or replace(named, bits=layout.bits, group_size=layout.group_size) != layout:
            return None
        widths.update(dict.fromkeys(group.get("targets") or (), Width(named.bits, named.group_size)))
    if any("." not in name or name.startswith("re:") for name in widths):
        return None
    return replace(layout, widths=widths, kept=tuple(config.get("ignore") or ())), "compressed-tensors"


def _group(group: Mapping[str, Any]) -> Layout | None:
    """The layout of one group of layers; None for one that is not read here."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    name = _method_of(weights, inputs)
    if name is None or weights.get("actorder") not in (None, "static"):
        return None
    method = method_named(name)
    if inputs is None and method.activations != "none":
        method = replace(method, activation_bits=16, activations="none")
    group_size = int(weights.get("group_size") or 0) if weights["strategy"] == "group" else 0
    return Layout(
        method=method,
        bits=int(weights["num_bits"]),
        group_size=group_size if method.element == "int" else method.group_size,
        symmetric=bool(weights.get("symmetric", True)),
        damping=0.0,
    )


def _method_of(weights: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> str | None:
    """The method whose files have weights and inputs like these."""
    kind, strategy = weights.get("type", "int"), str(weights.get("strategy"))
    rounded = None if inputs is None else (inputs.get("num_bits"), inputs.get("type"), inputs.get("strategy"))
    if kind == "int" and strategy in ("group", "channel"):
        by_token = inputs is not None and inputs.get("num_bits") == 8 and inputs.get("dynamic") is True
        return "rtn" if inputs is None else "int8" if by_token and inputs.get("type") == "int" else None
    if kind != "float":
        return None
    if weights.get("num_bits") == 4 and inputs is None:
        return {("tensor_group", 16): "nvfp4", ("group", 32): "mxfp4"}.get(
            (strategy, int(weights.get("group_size") or 0))
        )
    if weights.get("num_bits") != 8 or weights.get("block_structure") not in (None, [128, 128]):
        return None
    wanted = {"channel": ("fp8", "token"), "tensor": ("fp8-static", "tensor"), "block": ("fp8-block", "group")}
    if strategy not in wanted:
        return None
    name, rounds = wanted[strategy]
    return name if rounded in (None, (8, "float", rounds)) else None


def _bitsandbytes(config: Mapping[str, Any]) -> tuple[Layout, str] | None:
    if config.get("load_in_4bit") and config.get("bnb_4bit_quant_type") != "nf4":
        return None
    if config.get("bnb_4bit_use_double_quant") or config.get("bnb_4bit_quant_storage", "uint8") != "uint8":
        return None
    method = method_named("nf4" if config.get("load_in_4bit") else "llm-int8")
    layout = Layout(
        method=method,
        bits=method.bits,
        group_size=method.group_size,
        symmetric=True,
        damping=0.0,
        kept=tuple(config.get("llm_int8_skip_modules") or ()),
    )
    return layout, "bitsandbytes"


def _gptq(config: Mapping[str, Any]) -> tuple[Layout, str] | None:
    if config.get("checkpoint_format", "gptq") != "gptq" or "bits" not in config:
        return None
    layout = Layout(
        method=method_named("rtn"),
        bits=int(config["bits"]),
        group_size=max(0, int(config.get("group_size", -1))),
        symmetric=bool(config.get("sym", True)),
        damping=0.0,
    )
    return layout, "gptq"


def _awq(config: Mapping[str, Any]) -> tuple[Layout, str] | None:
    if str(config.get("version", "gemm")).lower() != "gemm" or config.get("bits", 4) != 4:
        return None
    layout = Layout(
        method=method_named("rtn"),
        bits=4,
        group_size=max(0, int(config.get("group_size", 128))),
        symmetric=False,
        damping=0.0,
        kept=tuple(config.get("modules_to_not_convert") or ()),
    )
    return layout, "awq"
