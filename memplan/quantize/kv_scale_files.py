"""Scales of a lower-precision cache, written into a checkpoint where vLLM reads them.

| where | what |
|---|---|
| `model-kv-scales.safetensors` | `...self_attn.k_scale` and `v_scale`, one float32 each, for every layer |
| the index of shards | their names; made where the weights are one file |
| `quantization_config` of config.json | `kv_cache_scheme`: float, 8 bits, one symmetric scale for a tensor |

Files with weights are not opened for writing. config.json is written last: until then an engine takes its own cache.
Source: vLLM 0.32, CompressedTensorsKVCacheMethod (which refuses other types than 8-bit floats) and
maybe_remap_kv_scale_name; compressed-tensors 0.20, QuantizationConfig.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memplan.errors import CorruptFile, UnsupportedModel, UsageError
from memplan.introspect.checkpoint import INDEX_NAMES
from memplan.quantize.checkpoint import Checkpoint
from memplan.quantize.kv_rounding import KvScales
from memplan.quantize.workspace import write_safetensors, write_whole

SCALES_NAME = "model-kv-scales.safetensors"
_SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
_SCALES = (".k_scale", ".v_scale")
_ATTENTION = re.compile(r"(?P<before>(?:.+\.)?)(?P<layer>\d+)\.self_attn\.")
_OTHER_TOWER = re.compile(r"vision|visual|audio|encoder")


def check_kv_scales(folder: Path, *, kv_dtype: str, force: bool) -> None:
    """Refuse, before anything is measured, a checkpoint that scales cannot be written into.

    Raises: UsageError for a type or a config that vLLM has no stored scales for, and for scales that are there.
    """
    if kv_dtype != "fp8":
        raise UsageError(
            f"no engine reads stored scales of a cache in {kv_dtype}", hint="write those of --kv-dtype fp8"
        )
    method = _quantization(_json(folder / "config.json")).get("quant_method")
    if method != "compressed-tensors":
        what = f"a quantization_config of {method}" if method else "no quantization_config"
        raise UsageError(
            f"{folder} has {what}: vLLM reads stored scales beside one of compressed-tensors",
            hint="quantize it with --format compressed-tensors; without, `--kv-cache-dtype fp8` takes scales of 1",
        )
    checkpoint = Checkpoint(folder, may_be_quantized=True)
    there = {name: file for name, file in checkpoint.stored().items() if name.endswith(_SCALES)}
    beside = next((file for file in there.values() if file != SCALES_NAME), None)
    if beside is not None:
        raise UsageError(
            f"{folder} has scales of its own, among the weights of {beside}", hint="files with weights are not changed"
        )
    if (there or (folder / SCALES_NAME).exists()) and not force:
        raise UsageError(f"{folder} has scales already", hint="--force replaces them")
    _attention_of(checkpoint.names())


def write_kv_scales(folder: Path, scales: Mapping[int, KvScales]) -> Path:
    """Write the scales of every layer beside the weights, and return their file.

    `folder` has passed `check_kv_scales`. Raises: UnsupportedModel for a layer whose attention was not found.
    """
    checkpoint = Checkpoint(folder, may_be_quantized=True)
    stored = checkpoint.stored()
    attention = _attention_of(stored)
    tensors: dict[str, Tensor] = {}
    for layer, each in scales.items():
        if layer not in attention:
            raise UnsupportedModel(f"no attention of layer {layer} among the tensors of {folder}", hint=_BY_HAND)
        for name, scale in (("k_scale", each.k_scale), ("v_scale", each.v_scale)):
            # Nothing was stored where all was zero; a scale of zero would be read as none.
            value = scale if math.isfinite(scale) and scale > 0 else 1.0
            tensors[f"{attention[layer]}.{name}"] = torch.tensor([value], dtype=torch.float32)
    path = folder / SCALES_NAME
    write_safetensors(path, tensors)
    _write_index(folder, {name: file for name, file in stored.items() if file != SCALES_NAME}, tensors)
    config = _json(folder / "config.json")
    _quantization(config)["kv_cache_scheme"] = _SCHEME
    write_whole(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    return path


_BY_HAND = "--json has the scales by layer"


def _attention_of(names: Iterable[str]) -> dict[int, str]:
    """The name of every layer's attention. Raises: UnsupportedModel where it is not plain which they are."""
    towers: dict[str, dict[int, str]] = {}
    for name in names:
        found = _ATTENTION.match(name)
        if found is None or _OTHER_TOWER.search(found["before"]):
            continue
        if ".kv_a_proj" in name:
            raise UnsupportedModel("its cache is of latents, which have no scale for keys and one for values")
        towers.setdefault(found["before"], {})[int(found["layer"])] = name[: found.end() - 1]
    if len(towers) != 1:
        raise UnsupportedModel(
            f"{len(towers)} stacks of layers with `self_attn` among its tensors, expected one", hint=_BY_HAND
        )
    return next(iter(towers.values()))


def _write_index(folder: Path, weights: Mapping[str, str], scales: Mapping[str, Tensor]) -> None:
    """The index with the scales in it, those of an earlier writing out of it."""
    name = next((known for known in INDEX_NAMES if (folder / known).is_file()), INDEX_NAMES[0])
    index: dict[str, Any] = _json(folder / name) if (folder / name).is_file() else {}
    earlier = [tensor for tensor, file in index.get("weight_map", {}).items() if file == SCALES_NAME]
    metadata = index.setdefault("metadata", {})
    total_bytes = metadata.get("total_size")
    if not isinstance(total_bytes, int):
        total_bytes = Checkpoint(folder, may_be_quantized=True).total_bytes
    scale_bytes = torch.float32.itemsize
    metadata["total_size"] = total_bytes + scale_bytes * (len(scales) - len(earlier))
    index["weight_map"] = {**weights, **dict.fromkeys(scales, SCALES_NAME)}
    write_whole(folder / name, json.dumps(index, indent=1).encode())


def _quantization(config: dict[str, Any]) -> dict[str, Any]:
    found = config.get("quantization_config")
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"cannot read {path}: {error}") from error
    return found if isinstance(found, dict) else {}
