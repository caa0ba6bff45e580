"""What engines accept or refuse a quantized checkpoint for, beyond how its matrices are stored: a few words by name.

- `desc_act`: GPTQ's activation order inside groups; `asymmetric`: zero points in GPTQ's packing
- `modelopt`, `compressed-tensors`: the tool's format, where engines have other minimums for one of them
- `weight-only`: the config quantizes no activations
- `prequantized`: the checkpoint is stored so, and not quantized while loading
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.introspect.config import Config

_GPTQ = frozenset({"gptq", "auto-gptq", "gptq_marlin", "auto-round", "intel/auto-round", "inc"})


def read_traits(method: str, config: Config) -> tuple[str, ...]:
    """Return the traits of a checkpoint whose quantization config is of `method`.

    Source: vLLM auto_gptq.py and compressed_tensors.py (0.33); ModelOpt's hf_quant_config.json.
    """
    found = ["prequantized"]
    if method in _GPTQ:
        if config.bool("desc_act", default=False) and config.get("group_size") not in (-1, 0):
            found.append("desc_act")
        if not config.bool("sym", default=True):
            found.append("asymmetric")
    elif method == "compressed-tensors":
        found += ["compressed-tensors", *_of_groups(config)]
    elif method.startswith("modelopt"):
        found.append("modelopt")
    return tuple(found)


def _of_groups(config: Config) -> list[str]:
    """Whether a group of compressed-tensors orders its activations, and whether none quantizes them."""
    raw = config.get("config_groups")
    groups = [group for group in raw.values() if isinstance(group, Mapping)] if isinstance(raw, Mapping) else []
    weights = [group["weights"] for group in groups if isinstance(group.get("weights"), Mapping)]
    found = ["desc_act"] if any(each.get("actorder") in ("group", "dynamic", True) for each in weights) else []
    return [*found, *([] if any(group.get("input_activations") for group in groups) else ["weight-only"])]
