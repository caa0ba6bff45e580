"""What ROCm makes of routed experts in 16 bits when they are loaded: rows that are 256 bytes longer.

Layer by layer the stack of gate and up is copied into a longer one and freed, then the stack of down. The allocator is
asked to return what is free before each copy's original is freed, so that the longer stack of down comes to lie in what
gate and up have left, whose rest is too small for anything else and stays until the process ends: a third of the
experts' size and more. Experts whose rows are no multiple of 512 bytes are left as they are.

Source: _maybe_pad_weight in fused_moe/layer.py (0.8.2 to 0.11.0) and unquantized_fused_moe_method.py (0.11.2 to 0.29);
from 0.30 on it is copied back. VLLM_ROCM_MOE_PADDING is on by default. Not modelled: the same for matrices in FP8
(VLLM_ROCM_FP8_PADDING), AITER's own order of experts, and, where weights are told by the device, the rest of segments:
it depends on what was in them before.
Checked by: recorded starts of Qwen3-VL-30B, Qwen3-235B and Llama-4-Maverick on MI300X.
"""

from __future__ import annotations

from memplan.budget.weights import WeightRules, tensor_bytes
from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import Layer
from memplan.domain.tensors import Role, Tensor
from memplan.engines.vllm.loading import is_down
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass

_PAD_BYTES = 256
_ALIGNED_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """What is counted as weights, and what no release counts: bytes that are free and cannot be returned."""

    charged_bytes: int = 0
    uncharged_bytes: int = 0


def expert_padding(layers: tuple[Layer, ...], gpu: GpuSpec, settings: VllmSettings, rules: Rules) -> Padding:
    """What the experts of `layers` grow by on one rank."""
    if gpu.vendor != "amd" or not rules["pads_experts"]:
        return Padding()
    made = {id(layer): _stacks(layer, settings) for layer in layers}
    stacks = [pair for layer in layers if (pair := made[id(layer)]) is not None]
    if not stacks:
        return Padding()
    from memplan.budget.caching_allocator.settings import AllocatorSettings
    from memplan.budget.caching_allocator.simulator import CachingAllocator

    allocator = CachingAllocator(AllocatorSettings())
    loaded = [(allocator.allocate(size), size, added) for pair in stacks for size, added in pair]
    before = allocator.reserved_bytes
    added = sum(more for _, _, more in loaded)
    for block, size, more in loaded:
        if more:
            _ = allocator.allocate(size + more)
            allocator.empty_cache()
            allocator.free(block)
    grown = allocator.reserved_bytes - before
    if rules["rocm_weights"] == "device":
        return Padding(charged_bytes=grown)
    return Padding(charged_bytes=added, uncharged_bytes=max(0, grown - added))


def _stacks(layer: Layer, settings: VllmSettings) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The sizes of a layer's two stacks of experts, each with what padding adds; None where it has none to pad."""
    parts = [tensor for tensor in layer.tensors if tensor.role is Role.EXPERT and len(tensor.shape) == 2]
    if not parts or layer.mlp is None or any(tensor.storage is not None for tensor in parts):
        return None
    inner = layer.mlp.intermediate // (1 if settings.layout.expert else settings.layout.tensor)
    up = [tensor for tensor in parts if not is_down(tensor)]
    down = [tensor for tensor in parts if is_down(tensor)]
    if not up or not down:
        return None
    return _padded(up, up[0].shape[-1], settings), _padded(down, inner, settings)


def _padded(tensors: list[Tensor], width: int, settings: VllmSettings) -> tuple[int, int]:
    """The bytes of a stack on one rank, and what its rows of `width` elements grow by."""
    size = sum(tensor_bytes(tensor, settings.layout, WeightRules(dtype=settings.dtype)) for tensor in tensors)
    row_bytes = width * settings.dtype.bits // 8
    return size, 0 if row_bytes % _ALIGNED_BYTES else size // row_bytes * _PAD_BYTES
