"""Whether the groups or blocks of quantized matrices survive the cut over tensor-parallel ranks.

A matrix that is cut along its inputs must leave every rank whole groups; FP8 in blocks must also leave whole blocks of
outputs. Routed experts in integer groups are left out: engines give them kernels with smaller groups. So are recurrent
mixers, whose small projections engines merge or keep plain. Integer groups are asked of a checkpoint's own config
only: who publishes one pads what does not divide (Qwen2.5-72B's AWQ: 29,568 channels as 29,696).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.tensors import Role, ShardKind, Tensor
from memplan.records import dataclass

# Last parts of the names of matrices whose inputs are cut: they take what the ranks before them made.
_CUT_INPUTS = frozenset(
    ("o_proj", "down_proj", "w2", "wo", "out_proj", "dense", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "linear_2")
)
_CUT = frozenset({ShardKind.SPLIT, ShardKind.EXPERTS})


@dataclass(frozen=True, slots=True, kw_only=True)
class UnevenSplit:
    """Why a layout cuts through groups, what to use instead, and where the check was read."""

    reason: str
    hint: str
    source: str


def uneven_split(spec: ModelSpec, layout: ParallelLayout, kind: str, splits: Mapping[str, Any]) -> UnevenSplit | None:
    """Return what is wrong with cutting `spec`, stored in a format of `kind`, over `layout`; None when nothing is."""
    in_blocks = kind in splits.get("blocks", ())
    if not in_blocks and (kind not in splits.get("groups", ()) or "prequantized" not in spec.quantization_traits):
        return None
    ranks = layout.tensor
    found = _cut_through(spec, layout, ranks, in_blocks=in_blocks)
    if found is None:
        return None
    even = next(
        (size for size in range(ranks - 1, 1, -1) if ranks % size == 0 and _is_even(spec, layout, size, in_blocks)), 1
    )
    instead = f"--tp {even}, " if even > 1 else ""
    pipeline = f"--tp {even} --pp {ranks // even}"
    experts = " or --ep" if found[0].role is Role.EXPERT else ""
    return UnevenSplit(
        reason=f"cannot be cut over {ranks} ranks: {found[1]}",
        hint=f"use {instead}{pipeline}{experts}",
        source=str(splits["source"]),
    )


def _is_even(spec: ModelSpec, layout: ParallelLayout, ranks: int, in_blocks: bool) -> bool:
    return _cut_through(spec, layout, ranks, in_blocks=in_blocks) is None


def _cut_through(spec: ModelSpec, layout: ParallelLayout, ranks: int, *, in_blocks: bool) -> tuple[Tensor, str] | None:
    for layer, _ in spec.distinct_layers():
        for tensor in layer.tensors:
            if tensor.role is Role.STATE or (tensor.role is Role.EXPERT and (layout.expert or not in_blocks)):
                continue
            wrong = _wrong(tensor, ranks, in_blocks=in_blocks)
            if wrong:
                return tensor, wrong
    return None


def _wrong(tensor: Tensor, ranks: int, *, in_blocks: bool) -> str:
    """What one matrix has against so many ranks."""
    storage = tensor.storage
    if storage is None or len(tensor.shape) < 2 or tensor.shard.kind not in _CUT or not storage.group_in:
        return ""
    leaf = tensor.name.removesuffix(".weight").rsplit(".", 1)[-1]
    cuts_inputs = leaf in _CUT_INPUTS
    size, group = (tensor.shape[-1], storage.group_in) if cuts_inputs else (tensor.shape[-2], storage.group_out)
    if not cuts_inputs and not in_blocks:
        return ""
    if size % ranks or (group > 1 and (size // ranks) % group):
        side = "inputs" if cuts_inputs else "outputs"
        each = f"{size // ranks:,}" if size % ranks == 0 else f"{size / ranks:,.1f}"
        parts = "blocks" if in_blocks else "groups"
        return f"{each} of {size:,} {side} of `{leaf}` on a rank are no whole {parts} of {group}"
    return ""
