"""What ROCm makes of matrices when they are loaded, and what that leaves behind in torch's allocator.

Rows of experts in 16 bits, and of FP8 in blocks, become 256 bytes longer where they are a multiple of 512. Layer by
layer the stack of gate and up is copied into a longer one and freed, then the stack of down. The allocator is asked to
return what is free before each copy's original is freed, so that the longer stack of down comes to lie in what gate and
up have left, whose rest is too small for anything else and stays until the process ends: a third of the experts' size.

MI300's FP8 has no negative zero: a mask of every matrix finds those of a checkpoint, and what is freed of the last
masks stays cached. Until 0.20 the size of the weights was told by what the device is short of, all of that included.

Source: _maybe_pad_weight in fused_moe/layer.py (0.8.2 to 0.11.0) and unquantized_fused_moe_method.py (0.11.2 to 0.29;
from 0.30 on it is copied back), _maybe_pad_fp8_weight and normalize_e4m3fn_to_e4m3fnuz in quantization/utils; all are
on by default. AITER, which is off by default, then copies experts in 16 bits into an order of its own, without padding,
and its copies reuse the pieces (VLLM_ROCM_USE_AITER, 0.8.3 to 0.33). Not modelled: FP8 with one scale for a matrix,
which is padded as well and which memplan does not tell from one for each row; the rest of segments, which depends on
what was in them before.
Checked by: recorded starts of Qwen3-VL-30B, Qwen3-235B, Llama-4-Maverick, Llama-3.3-70B and DeepSeek-R1 on MI300X.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.budget.weights import WeightRules, kept_shape, merged_name, tensor_parts
from memplan.catalog.rules import Rules
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer
from memplan.domain.tensors import Role, Tensor
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass

if TYPE_CHECKING:
    from memplan.budget.caching_allocator.blocks import Block

_PAD_BYTES = 256
_ALIGNED_BYTES = 512
_UNSIGNED_ZERO = "cdna3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """What is counted as weights, and what no release counts: bytes that are free and cannot be returned."""

    charged_bytes: int = 0
    uncharged_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix as it is loaded, or a stack of them: its size, what padding adds, whether a mask of it is made, and
    whether AITER has an order of its own for it.
    """

    size_bytes: int
    added_bytes: int
    is_masked: bool
    is_reordered: bool


def rocm_padding(
    layers: tuple[Layer, ...], gpu: GpuSpec, settings: VllmSettings, rules: Rules, *, aiter: bool
) -> Padding:
    """What the weights of `layers` grow by on one rank."""
    if gpu.vendor != "amd" or not rules["pads_fp8_blocks"]:
        return Padding()
    from memplan.budget.caching_allocator.settings import AllocatorSettings
    from memplan.budget.caching_allocator.simulator import CachingAllocator

    made = {id(layer): _matrices(layer, gpu, settings, rules) for layer in layers}
    allocator = CachingAllocator(AllocatorSettings())
    loaded = [[(matrix, allocator.allocate(matrix.size_bytes)) for matrix in made[id(layer)]] for layer in layers]
    held, before = allocator.allocated_bytes, allocator.reserved_bytes
    for layer in loaded:
        experts: list[tuple[Matrix, Block]] = []
        for matrix, block in layer:
            kept = block
            if matrix.is_masked:
                allocator.free(allocator.allocate(matrix.size_bytes))
            if matrix.added_bytes:
                kept = allocator.allocate(matrix.size_bytes + matrix.added_bytes)
                allocator.empty_cache()
                allocator.free(block)
            if aiter and matrix.is_reordered:
                experts.append((matrix, kept))
        for matrix, _ in experts:
            _ = allocator.allocate(matrix.size_bytes)
        for _, kept in experts:
            allocator.free(kept)
    if rules["rocm_weights"] == "device":
        return Padding(charged_bytes=allocator.reserved_bytes - before)
    allocator.empty_cache()
    added = allocator.allocated_bytes - held
    return Padding(charged_bytes=added, uncharged_bytes=max(0, allocator.reserved_bytes - before - added))


def _matrices(layer: Layer, gpu: GpuSpec, settings: VllmSettings, rules: Rules) -> tuple[Matrix, ...]:
    """The matrices of a layer that are masked or padded, in the order of its modules, merged as vLLM merges them."""
    found: dict[str, Matrix] = {}
    weights = WeightRules(dtype=settings.dtype)
    for tensor in layer.tensors:
        pads = _is_padded(tensor, rules)
        if len(tensor.shape) != 2 or not (pads or _is_fp8(tensor)):
            continue
        size = tensor_parts(tensor, settings.layout, weights)[0]
        shape, _ = kept_shape(tensor, settings.layout, weights)
        row_bytes = shape[-1] * (1 if _is_fp8(tensor) else settings.dtype.bits // 8)
        added = size // row_bytes * _PAD_BYTES if pads and row_bytes % _ALIGNED_BYTES == 0 else 0
        name = merged_name(tensor.name)
        before = found.get(name)
        found[name] = Matrix(
            size_bytes=size + (before.size_bytes if before else 0),
            added_bytes=added + (before.added_bytes if before else 0),
            is_masked=_is_fp8(tensor) and gpu.architecture == _UNSIGNED_ZERO,
            is_reordered=tensor.role is Role.EXPERT and tensor.storage is None and bool(rules["aiter_experts"]),
        )
    return tuple(found.values())


def _is_padded(tensor: Tensor, rules: Rules) -> bool:
    if tensor.role is Role.EXPERT:
        return tensor.storage is None and bool(rules["pads_experts"])
    return tensor.storage is not None and tensor.storage.scheme == "fp8-block"


def _is_fp8(tensor: Tensor) -> bool:
    return tensor.storage is not None and tensor.storage.element is DType.FP8_E4M3
