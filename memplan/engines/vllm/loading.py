"""What vLLM makes of a checkpoint's quantized matrices when it loads them, where that differs from the file.

Most formats keep their size: Marlin repacks int4 and FP8 in place, scales stay as they are. Not so bitsandbytes, whose
scales are themselves quantized while loading until a release that expands them again, and NVFP4 experts, of which some
releases kept a reordered copy. Where a model's values are its keys (Gemma 4's full layers), the projection is loaded
twice, into the two parts of one merged parameter.

Source: bitsandbytes_loader.py (_dequantize_dq), compressed_tensors_moe.py and modelopt.py, at the releases that
catalog/engines/vllm.yaml names.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer, ModelSpec, Tower
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.domain.tensors import REPLICATED, Role, Storage, Tensor
from memplan.engines.tiles import tiled
from memplan.records import replace

_BNB_GROUP = 64
_BNB_NESTED_GROUP = 256


def as_loaded(spec: ModelSpec, rules: Rules, gpu: GpuSpec, layout: ParallelLayout) -> ModelSpec:
    """Return the model with every matrix stored as this release keeps it on that GPU."""
    if spec.model_type in rules["replicated_towers"] and layout.tensor > 1:
        spec = replace(spec, towers=tuple(_whole(tower) for tower in spec.towers))
    if spec.model_type in rules["keys_as_values"]:
        made = {id(layer): _with_values(layer) for layer, _ in spec.distinct_layers()}
        spec = replace(spec, layers=tuple(made[id(layer)] for layer in spec.layers))
    if not spec.quantization:
        return spec
    if spec.quantization.startswith("bnb-nf4"):
        change = _nested_bnb if rules["bnb_scales"] == "nested" else _plain_bnb
        return map_tensors(spec, lambda tensor: _restored(tensor, change))
    if spec.quantization.startswith("mxfp4") and rules["mxfp4_tiles"] and gpu.vendor == "nvidia":
        kind = "blackwell" if gpu.cuda_capability in (10.0, 10.3) else "other"
        cut, whole = rules["mxfp4_tiles"][kind]
        return map_tensors(spec, lambda tensor: tiled(tensor, layout, cut_tile=cut, whole_tile=whole))
    return spec


def starts_from_16_bits(spec: ModelSpec, asked: ServingSettings, rules: Rules) -> bool:
    """Whether FP8 weights are made while loading, from 16-bit weights that are whole on the GPU first."""
    return asked.quant == "fp8" and spec.quantization is not None and rules["online_fp8_load"] != "layer"


def _whole(tower: Tower) -> Tower:
    return replace(tower, tensors=tuple(replace(tensor, shard=REPLICATED) for tensor in tower.tensors))


def _with_values(layer: Layer) -> Layer:
    """The layer with a second copy of its keys' projection, if it has none for values."""
    names = {tensor.name for tensor in layer.tensors}
    copies = tuple(
        replace(tensor, name=tensor.name.replace("k_proj", "v_proj"))
        for tensor in layer.tensors
        if "k_proj" in tensor.name and tensor.name.replace("k_proj", "v_proj") not in names
    )
    return replace(layer, tensors=(*layer.tensors, *copies)) if copies else layer


def _restored(tensor: Tensor, change: Callable[[Storage], Storage]) -> Tensor:
    storage = tensor.storage
    return replace(tensor, storage=change(storage)) if storage and storage.scheme.startswith("bnb") else tensor


def copied_bytes(layers: tuple[Layer, ...], spec: ModelSpec, rules: Rules, ranks: int) -> tuple[int, ...]:
    """Second copies that a release keeps beside what it loaded, as allocations of one rank."""
    if rules["nvfp4_experts"] != "copied" or not (spec.quantization or "").startswith("nvfp4"):
        return ()
    return tuple(
        tensor.num_parameters // 2 // ranks
        for layer in layers
        for tensor in layer.tensors
        if tensor.role is Role.EXPERT and tensor.storage is not None and not _is_down(tensor)
    )


def _is_down(tensor: Tensor) -> bool:
    return tensor.name.rsplit(".", 2)[-2] in ("down_proj", "w2")


def _nested_bnb(storage: Storage) -> Storage:
    """Scales of 64 weights in 8 bits, with an FP32 scale for 256 of them."""
    return replace(storage, scale_bits=8, nested_group=_BNB_NESTED_GROUP, nested_bits=32)


def _plain_bnb(storage: Storage) -> Storage:
    """Scales of 64 weights in FP32."""
    return replace(storage, scale_bits=32, nested_group=0, nested_bits=0)


def map_tensors(spec: ModelSpec, apply: Callable[[Tensor], Tensor]) -> ModelSpec:
    """Return the model with `apply` done to every tensor."""
    made = {id(layer): replace(layer, tensors=tuple(map(apply, layer.tensors))) for layer, _ in spec.distinct_layers()}
    return replace(
        spec,
        layers=tuple(made[id(layer)] for layer in spec.layers),
        shared=tuple(map(apply, spec.shared)),
        towers=tuple(replace(tower, tensors=tuple(map(apply, tower.tensors))) for tower in spec.towers),
    )
