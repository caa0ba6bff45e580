"""What operators take inside themselves and give back before they return: workspaces, sorted copies, partial sums.

The recorder sits above the kernels and cannot see it; each function here says, for one operator, the sizes in bytes
that are alive together while it runs. What a library takes for a convolution is not modelled. cuDNN ranks its
algorithms by rules of its own (or measures them, with torch.backends.cudnn.benchmark), PyTorch takes the first whose
workspace the allocator can give, and its size is not published; oneDNN's depends on the processor. `left_out` says
so where it matters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from memplan.profile.events import EventLog
from memplan.profile.kernels import Target
from memplan.profile.recorder import Inside
from memplan.units import KIB, MIB, round_up

_OPS = torch.ops.aten
_FLOAT_BYTES, _INDEX_BYTES = 4, 8
# Up to so many indices the gradient of an embedding is written without sorting them.
_UNSORTED_INDICES = 3072
_ROWS_PER_SUM = 10
_WARP = 32
_PRODUCTS = (_OPS.mm, _OPS.addmm, _OPS.bmm, _OPS.baddbmm, _OPS.addmv, _OPS.mv, _OPS.dot, _OPS._scaled_mm)
MATRIX_PRODUCTS = frozenset(each.default for each in _PRODUCTS)


def insides(target: Target) -> dict[Any, Inside]:
    """By operator, what it takes inside on a device."""
    shared: dict[Any, Inside] = {_OPS._safe_softmax.default: _safe_softmax}
    if target == "cpu":
        return shared
    return {
        **shared,
        _OPS._scaled_dot_product_flash_attention_backward.default: _flash_backward,
        _OPS._flash_attention_backward.default: _flash_backward_plain,
        _OPS._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
        _OPS.embedding_dense_backward.default: _embedding_backward,
        _OPS.sort.default: _sort,
        _OPS.sort.stable: _sort,
    }


def left_out(log: EventLog) -> tuple[str, ...]:
    """What a page says of the convolutions of a simulated run."""
    modules = {label.module for label in log.labels if label.operator.startswith("aten.convolution")}
    if not modules:
        return ()
    count = f"{len(modules)} modules with convolutions" if len(modules) > 1 else "a module with a convolution"
    return (f"{count}: what cuDNN takes while one runs is left out, because it is not known before",)


def cublas_workspace_bytes(compute_capability: tuple[int, int]) -> int:
    """The workspace that PyTorch gives cuBLAS at the first matrix product, and leaves it for good.

    Source: aten/src/ATen/cuda/CublasHandlePool.cpp of PyTorch 2.4 to 2.12: CUBLAS_WORKSPACE_CONFIG's default.
    """
    return 32 * MIB if compute_capability[0] in (9, 10, 12) else 8 * MIB + 128 * KIB


def _safe_softmax(args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Iterable[int]:
    """Which scores are minus infinity, and in which rows all are: truths, of one byte each.

    Source: aten/src/ATen/native/transformers/attention.cpp of PyTorch 2.13.
    """
    rows = made.numel() // max(made.shape[args[1]], 1)
    return (made.numel(), rows, made.element_size())


def _flash_backward(args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Iterable[int]:
    """Tensors as [batch, heads, tokens, width]."""
    _, query, key = args[:3]
    batch, heads, tokens, width = query.shape
    return _flash_sizes(batch, heads, tokens, width, key.shape[2], key.shape[1], query.element_size())


def _flash_backward_plain(args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Iterable[int]:
    """Tensors as [batch, tokens, heads, width]."""
    _, query, key = args[:3]
    if query.dim() != 4:
        return ()
    batch, tokens, heads, width = query.shape
    return _flash_sizes(batch, heads, tokens, width, key.shape[1], key.shape[2], query.element_size())


def _flash_sizes(
    batch: int, heads: int, tokens: int, width: int, key_tokens: int, key_heads: int, element_bytes: int
) -> Iterable[int]:
    """Gradients of queries added up in FP32, one sum for each row, and keys and values for every query head.

    Source: aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp of PyTorch 2.4 to 2.13, mha_bwd.
    """
    rows = round_up(tokens, 128)
    padded = round_up(width, 32 if width <= 128 else 64)
    yield batch * heads * rows * _FLOAT_BYTES
    yield batch * rows * heads * padded * _FLOAT_BYTES
    if key_heads != heads:
        expanded = batch * key_tokens * heads * width * element_bytes
        yield expanded
        yield expanded


def _efficient_backward(args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Iterable[int]:
    """One sum for each row, and for 16 bit queries their gradient added up in FP32, in tiles of 64 rows.

    Source: mem_eff_attention/kernel_backward.h of PyTorch 2.4 to 2.13.
    """
    query = args[1]
    batch, heads, tokens, width = query.shape
    yield batch * heads * tokens * _FLOAT_BYTES
    if query.element_size() < _FLOAT_BYTES:
        yield batch * heads * round_up(tokens, 64) * round_up(width, 64) * _FLOAT_BYTES


def _embedding_backward(args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Iterable[int]:
    """Sorted indices and where they were, their sort, segments of equal ones, and a partial sum for every few rows.

    Source: aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu of PyTorch 2.4 to 2.13.
    """
    grad, indices, num_weights = args[:3]
    count = indices.numel()
    if count <= _UNSORTED_INDICES:
        return
    segments = min(count, int(num_weights))
    partial = count // _ROWS_PER_SUM + segments
    sums_bytes = _FLOAT_BYTES if grad.element_size() < _FLOAT_BYTES else grad.element_size()
    yield count * _INDEX_BYTES
    yield count * _INDEX_BYTES
    for _ in range(3):
        yield segments * _INDEX_BYTES
    yield partial * _INDEX_BYTES
    yield partial * round_up(grad.shape[-1], _WARP) * sums_bytes


def _sort(args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Iterable[int]:
    """The second pair of buffers that a radix sort goes through.

    Source: aten/src/ATen/native/cuda/Sort.cpp and cub's double buffers.
    """
    values, indices = made
    yield values.numel() * values.element_size()
    yield indices.numel() * indices.element_size()
