"""What a `quantization_config` says, where it is one of the layouts that are read here: ours, and others' alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.quantize.formats import Layout
from memplan.quantize.methods import method_named


def layout_of(config: Mapping[str, Any]) -> tuple[Layout, str] | None:
    """Return the layout and the name of its format; None for one that only its own library reads."""
    reader = {"compressed-tensors": _compressed_tensors, "gptq": _gptq, "awq": _awq}.get(
        str(config.get("quant_method"))
    )
    return reader(config) if reader else None


def _compressed_tensors(config: Mapping[str, Any]) -> tuple[Layout, str] | None:
    groups = list((config.get("config_groups") or {}).values())
    if config.get("format") not in ("pack-quantized", "int-quantized") or len(groups) != 1:
        return None
    (group,) = groups
    weights, inputs = group.get("weights") or {}, group.get("input_activations")
    if group.get("targets") != ["Linear"] or weights.get("type") != "int" or config.get("kv_cache_scheme"):
        return None
    if weights.get("strategy") not in ("group", "channel") or weights.get("actorder") not in (None, "static"):
        return None
    rounds = inputs is not None
    if rounds and not (inputs.get("num_bits") == 8 and inputs.get("dynamic") is True and inputs.get("type") == "int"):
        return None
    layout = Layout(
        method=method_named("int8" if rounds else "rtn"),
        bits=int(weights["num_bits"]),
        group_size=int(weights.get("group_size") or 0) if weights["strategy"] == "group" else 0,
        symmetric=bool(weights.get("symmetric", True)),
        damping=0.0,
        kept=tuple(config.get("ignore") or ()),
    )
    return layout, "compressed-tensors"


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
