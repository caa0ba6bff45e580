"""Routed experts whose matrices an engine pads to whole tiles of its kernels before it allocates them.

MXFP4 kernels ask for widths that are multiples of 128 or 256; gpt-oss, at 2880, grows by 4 % or 14 %.
"""

from __future__ import annotations

from memplan.budget.storage import stored_parts
from memplan.domain.serving import ParallelLayout
from memplan.domain.tensors import Role, Tensor
from memplan.records import replace
from memplan.units import ceil_div, round_up


def is_tiled(tensor: Tensor) -> bool:
    """Whether a tensor is a stack of expert matrices in MXFP4."""
    storage = tensor.storage
    return storage is not None and storage.scheme == "mxfp4" and tensor.role is Role.EXPERT and len(tensor.shape) == 2


def tiled_parts(tensor: Tensor, layout: ParallelLayout, *, cut_tile: int, whole_tile: int) -> tuple[int, ...]:
    """Return the bytes of an expert stack on one rank: weights, scales, zeros and the rest.

    The axis that is cut over ranks is padded to `cut_tile` on every rank, the other to `whole_tile`.
    """
    assert tensor.storage is not None
    pieces = tensor.shard.pieces
    axis = 0 if tensor.shape[0] % pieces == 0 else 1
    stacked = max(1, tensor.shape[axis] // pieces)
    ranks = 1 if layout.expert else layout.tensor
    count = ceil_div(tensor.count, layout.tensor * layout.data) if layout.expert else tensor.count
    shape = (round_up(ceil_div(pieces, ranks), cut_tile) * stacked, round_up(tensor.shape[1 - axis], whole_tile))
    kept = stored_parts(shape, tensor.storage, count=count)
    return (kept.weights_bytes, kept.scales_bytes, kept.zeros_bytes, kept.rest_bytes)


def tiled(tensor: Tensor, layout: ParallelLayout, *, cut_tile: int, whole_tile: int) -> Tensor:
    """Return an MXFP4 expert stack with its axes grown to whole tiles on every rank; any other tensor unchanged."""
    if not is_tiled(tensor):
        return tensor
    pieces = tensor.shard.pieces
    axis = 0 if tensor.shape[0] % pieces == 0 else 1
    ranks = 1 if layout.expert else layout.tensor
    grown = ranks * round_up(ceil_div(pieces, ranks), cut_tile)
    stacked = max(1, tensor.shape[axis] // pieces)
    widths = [round_up(extent, whole_tile) for extent in tensor.shape]
    widths[axis] = grown * stacked
    return replace(tensor, shape=tuple(widths), shard=replace(tensor.shard, units=grown))
