"""Bytes of a stored matrix: packed weights, scales, zero points, and what else a quantization format keeps.

Formula (docs/memory-model.md, "Quantized weights"), for a matrix of shape (out, in) under a Storage:

    weights = out x ceil(in x bits / word_bits) words           (in x ceil(out x bits / word_bits) where packed_out)
    groups  = ceil(in / group_in) x ceil(out / group_out)       (ceil(out x in / group_in) where flat)
    scales  = groups x scale_bits, and ceil(groups / nested_group) x nested_bits where scales are quantized themselves
    zeros   = groups x zero_bits, each row of them padded to whole words of zero_word_bits where they are packed
    rest    = in x index_bits, and tensor_bytes once

Worked numbers for a 4,096 x 4,096 matrix: int4 in groups of 128 with 16-bit scales is 4 + 16/128 = 4.125 bits a
weight, with 4-bit zero points 4 + 16/128 + 4/128 = 4.156; in groups of 64 it is 4.313, of 32 it is 4.625. FP8 with
one FP32 scale for 128 x 128 is 8 + 32/16384 = 8.002; MXFP4 4 + 8/32 = 4.25; NVFP4 4 + 8/16 = 4.5; bitsandbytes NF4 4
+ 32/64 = 4.5, with quantized scales 4 + 8/64 + 32/(64 x 256) = 4.127; MLX affine 4 + 32/64 = 4.5. What a model weighs
is more: embeddings, head, norms and routers stay in 16 bits, see `memplan.introspect.quantized`.

Sizes are those of the published file. What an engine makes of them when it loads (padding for a kernel, a second copy
while repacking, scales widened to FP32) is the engine's; two paddings that several engines share stand at the end.
"""

from __future__ import annotations

from math import prod

from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Storage, Tensor
from memplan.records import dataclass
from memplan.units import ceil_div, round_up

# Every format's bits are a multiple of 1/160: GGUF has 32nds, HQQ's ten 3-bit weights in 32 bits come to 3.2.
_STEPS_PER_BIT = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredParts:
    """What one stored matrix consists of, in bytes."""

    weights_bytes: int
    scales_bytes: int
    zeros_bytes: int
    rest_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.scales_bytes + self.zeros_bytes + self.rest_bytes


def storage_bytes(shape: tuple[int, ...], storage: Storage, *, count: int = 1) -> int:
    """Return the bytes of `count` equal matrices of `shape` under `storage`.

    `shape` is (..., out, in): leading axes are a stack of matrices, a vector is one row. Every matrix of a stack has
    scales of its own, and `tensor_bytes` of its own.
    """
    stack, out_width, in_width = _matrix(shape)
    return stack * count * _parts(out_width, in_width, storage).total_bytes


def stored_parts(shape: tuple[int, ...], storage: Storage, *, count: int = 1) -> StoredParts:
    """Return the same as `storage_bytes`, told apart."""
    stack, out_width, in_width = _matrix(shape)
    parts, copies = _parts(out_width, in_width, storage), stack * count
    return StoredParts(
        weights_bytes=copies * parts.weights_bytes,
        scales_bytes=copies * parts.scales_bytes,
        zeros_bytes=copies * parts.zeros_bytes,
        rest_bytes=copies * parts.rest_bytes,
    )


def bits_per_weight(shape: tuple[int, ...], storage: Storage) -> float:
    """Return the bits that one weight of a matrix takes, with everything stored beside it."""
    return 8 * storage_bytes(shape, storage) / prod(shape)


def stored_tensor_bytes(tensor: Tensor, dtype: DType) -> int:
    """Return the bytes of a whole, unsharded tensor; `dtype` is the model's, for a tensor without one of its own."""
    if tensor.storage is not None:
        return storage_bytes(tensor.shape, tensor.storage, count=tensor.count)
    return ceil_div(tensor.num_elements * (tensor.dtype or dtype).bits, 8)


def checkpoint_bytes(spec: ModelSpec, *, with_mtp: bool = True) -> int:
    """Return the bytes of all tensors of a model, as its checkpoint stores them.

    This is what a safetensors index calls `total_size`: no file headers, tied tensors once.
    Not modelled: scales of a quantized KV cache (8 bytes a layer), the JSON of bitsandbytes' quantization states.
    """
    total = sum(stored_tensor_bytes(tensor, spec.dtype) for tensor in spec.shared)
    per_layer: dict[int, int] = {}
    for layer in spec.layers:
        if id(layer) not in per_layer:
            per_layer[id(layer)] = sum(stored_tensor_bytes(tensor, spec.dtype) for tensor in layer.tensors)
        total += per_layer[id(layer)]
    total += sum(stored_tensor_bytes(tensor, spec.dtype) for tower in spec.towers for tensor in tower.tensors)
    if with_mtp:
        total += sum(stored_tensor_bytes(tensor, spec.dtype) for tensor in spec.mtp)
    return total


def swizzled_scale_bytes(shape: tuple[int, ...], storage: Storage, *, rows: int = 128, groups: int = 4) -> int:
    """Return the bytes of block scales in the tiled layout that Blackwell's tensor cores read.

    Rows are padded to 128 and groups to 4, so a matrix with few rows grows.

    Source: NVIDIA's block-scaled matrix layout (CUTLASS, cuBLAS); vLLM `swizzle_blockscale`, 0.9 to 0.33.
    """
    stack, out_width, in_width = _matrix(shape)
    num_groups = ceil_div(in_width, storage.group_in) if storage.group_in else 1
    return stack * round_up(out_width, rows) * ceil_div(round_up(num_groups, groups) * storage.scale_bits, 8)


def padded_shape(shape: tuple[int, ...], *, out_multiple: int, in_multiple: int) -> tuple[int, ...]:
    """Return `shape` with its last two axes rounded up, as kernels that work on whole tiles ask for."""
    return (*shape[:-2], round_up(shape[-2], out_multiple), round_up(shape[-1], in_multiple))


def _matrix(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The stack, output and input widths of a shape."""
    if len(shape) < 2:
        return 1, 1, prod(shape)
    return prod(shape[:-2]), shape[-2], shape[-1]


def _parts(out_width: int, in_width: int, storage: Storage) -> StoredParts:
    if storage.flat:
        lines, line = 1, out_width * in_width
    elif storage.packed_out:
        lines, line = in_width, out_width
    else:
        lines, line = out_width, in_width
    groups_in, groups_out = _groups(out_width, in_width, storage)
    groups = groups_in * groups_out
    nested_bits = ceil_div(groups, storage.nested_group) * storage.nested_bits if storage.nested_group else 0
    zero_line_bits = groups_out * storage.zero_bits
    if storage.zero_word_bits:
        zero_line_bits = round_up(zero_line_bits, storage.zero_word_bits)
    return StoredParts(
        weights_bytes=lines * _word_bytes(line, storage.bits, storage.word_bits),
        scales_bytes=ceil_div(groups * storage.scale_bits + nested_bits, 8),
        zeros_bytes=ceil_div(groups_in * zero_line_bits, 8),
        rest_bytes=ceil_div(in_width * storage.index_bits, 8) + storage.tensor_bytes,
    )


def _groups(out_width: int, in_width: int, storage: Storage) -> tuple[int, int]:
    """How many groups there are along the input and the output axis."""
    if storage.flat:
        return ceil_div(out_width * in_width, storage.group_in or out_width * in_width), 1
    groups_in = ceil_div(in_width, storage.group_in) if storage.group_in else 1
    groups_out = ceil_div(out_width, storage.group_out) if storage.group_out else 1
    return groups_in, groups_out


def _word_bytes(elements: int, bits: float, word_bits: int) -> int:
    """The bytes of a line of packed elements, its last word filled up."""
    steps = elements * round(bits * _STEPS_PER_BIT)
    return ceil_div(ceil_div(steps, word_bits * _STEPS_PER_BIT) * word_bits, 8)
