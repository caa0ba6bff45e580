"""Weight bytes of one rank: what tensor, pipeline and expert parallelism leave of a model on the fullest GPU.

Formula (docs/memory-model.md, "Weights"): the sum over the tensors of a rank of elements kept x bits per element,
with scales and zero points of quantized matrices. Query heads, MLP channels and vocabulary rows divide by the
tensor-parallel size; key-value heads divide until one head is left and are replicated beyond; norms, routers and
latent down-projections are whole on every rank. The vocabulary is padded first to `vocab_multiple`, then to the
number of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from math import prod

from memplan.budget.storage import stored_parts
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec, count_layers
from memplan.domain.serving import ParallelLayout
from memplan.domain.tensors import Role, Shard, ShardKind, Tensor
from memplan.errors import UsageError
from memplan.records import Same, dataclass
from memplan.units import ceil_div, round_up


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRules:
    """What an engine does to weights when it loads them.

    `vocab_multiple` pads the embedding and head rows. `loads_optional` loads towers that an engine which writes only
    text leaves out.
    """

    dtype: DType
    vocab_multiple: int = 64
    replicate_embedding: bool = False
    loads_optional: bool = False


def check_divides(spec: ModelSpec, layout: ParallelLayout) -> None:
    """Refuse a tensor-parallel size that cannot cut the model.

    Raises: UsageError when the query heads, or a layer's MLP, do not divide by the tensor-parallel size.
    """
    tensor = layout.tensor
    heads = {layer.num_heads for layer in spec.layers if layer.num_heads}
    bad = sorted(number for number in heads if number % tensor)
    if bad:
        fits = [size for size in (1, 2, 4, 8, 16, 32) if all(number % size == 0 for number in heads)]
        raise UsageError(
            f"{bad[0]} attention heads do not divide over --tp {tensor}",
            hint=f"use --tp {' or '.join(map(str, fits))}",
        )
    if layout.pipeline > spec.num_layers:
        raise UsageError(
            f"{spec.num_layers} layers cannot be cut into --pp {layout.pipeline} stages",
            hint=f"use --pp {spec.num_layers} or less",
        )


def tensor_bytes(tensor: Tensor, layout: ParallelLayout, rules: WeightRules) -> int:
    """The bytes of one tensor (all its copies) on one rank."""
    return sum(tensor_parts(tensor, layout, rules))


def tensor_parts(tensor: Tensor, layout: ParallelLayout, rules: WeightRules) -> tuple[int, ...]:
    """The bytes of one tensor (all its copies) on one rank, as the parameters it is stored in: weights, scales,
    zeros.
    """
    shape, count = kept_shape(tensor, layout, rules)
    if tensor.storage is not None:
        parts = stored_parts(shape, tensor.storage, count=count)
        return (parts.weights_bytes, parts.scales_bytes, parts.zeros_bytes, parts.rest_bytes)
    dtype = tensor.dtype or rules.dtype
    return (ceil_div(prod(shape) * count * dtype.bits, 8),)


def kept_shape(tensor: Tensor, layout: ParallelLayout, rules: WeightRules) -> tuple[tuple[int, ...], int]:
    """The shape and the number of copies that one rank keeps of a tensor."""
    shard, ranks = tensor.shard, layout.tensor
    if shard.kind is ShardKind.VOCAB:
        padded = round_up(round_up(tensor.shape[0], rules.vocab_multiple), ranks)
        rows = padded if rules.replicate_embedding and tensor.role is Role.EMBEDDING else padded // ranks
        return (rows, *tensor.shape[1:]), tensor.count
    if shard.kind is ShardKind.EXPERTS and layout.expert:
        return tensor.shape, ceil_div(tensor.count, ranks * layout.data)
    kept_units = units_per_rank(shard, ranks)
    if kept_units == shard.pieces:
        return tensor.shape, tensor.count
    axis = cut_axis(tensor)
    extent = ceil_div(tensor.shape[axis] * kept_units, shard.pieces)
    return (*tensor.shape[:axis], extent, *tensor.shape[axis + 1 :]), tensor.count


def units_per_rank(shard: Shard, ranks: int) -> int:
    """How many of a weight's indivisible pieces the fullest rank keeps, of `shard.pieces`."""
    if shard.kind is ShardKind.REPLICATED:
        return shard.pieces
    if shard.kind is ShardKind.KV_HEADS:
        return max(1, ceil_div(shard.units, ranks))
    if shard.kind is ShardKind.QKV_HEADS:
        return ceil_div(shard.units, ranks) + 2 * max(1, ceil_div(shard.kv_units, ranks))
    return ceil_div(shard.units, ranks)


def cut_axis(tensor: Tensor) -> int:
    """The axis that tensor parallelism cuts: the first one that is a multiple of the units, the output axis first.

    A projection cut by input has its units on the input axis; when both axes are multiples (a square matrix) the bytes
    are the same either way, but for the groups of a quantized matrix.
    """
    for axis, extent in enumerate(tensor.shape):
        if extent % tensor.shard.pieces == 0:
            return axis
    return 0


def stage_layers(spec: ModelSpec, pipeline: int, stage: int) -> tuple[Layer, ...]:
    """The layers of one pipeline stage.

    Layers divide evenly; what is left over goes one each to the stages before the last, from the second to last
    backwards (the last stage also holds the head).

    Source: vLLM `get_pp_indices` (vllm/distributed/utils.py), 0.6.4 to 0.33.
    """
    base, extra = divmod(spec.num_layers, pipeline)
    sizes = [base] * pipeline
    for offset in range(extra):
        sizes[max(pipeline - 2 - offset, 0) if pipeline > 1 else 0] += 1
    first = sum(sizes[:stage])
    return spec.layers[first : first + sizes[stage]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWeights:
    """The weights of one rank: bytes by role, and the sizes in which an engine asks the allocator for them, in
    order.
    """

    stage: int
    by_role: dict[Role, int]
    requests: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        return sum(self.by_role.values())


def rank_weights(spec: ModelSpec, layout: ParallelLayout, rules: WeightRules, stage: int) -> RankWeights:
    """The weights of one pipeline stage on one tensor-parallel rank.

    The first stage holds the embedding and the towers, the last one the final norm and the head; a tied head makes the
    last stage hold the embedding table as well.
    """
    return _rank_weights(Same(spec), layout, rules, stage)


@lru_cache(maxsize=64)
def _rank_weights(same: Same, layout: ParallelLayout, rules: WeightRules, stage: int) -> RankWeights:
    spec = same.record
    assert isinstance(spec, ModelSpec)
    is_first, is_last = stage == 0, stage == layout.pipeline - 1
    before: list[Tensor] = [
        tensor
        for tower in spec.towers
        for tensor in tower.tensors
        if is_first and (rules.loads_optional or not tower.optional)
    ]
    after: list[Tensor] = []
    for tensor in spec.shared:
        at_start = tensor.role in (Role.EMBEDDING, Role.POSITION)
        if at_start and (is_first or (is_last and spec.tied_embeddings)):
            before.append(tensor)
        elif not at_start and is_last:
            after.append(tensor)
    by_role: dict[Role, int] = {}
    requests = _place(before, by_role, layout, rules)
    layers = stage_layers(spec, layout.pipeline, stage)
    made: dict[int, tuple[int, ...]] = {}
    for layer, copies in count_layers(layers):
        layer_roles: dict[Role, int] = {}
        made[id(layer)] = _place(layer.tensors, layer_roles, layout, rules)
        _count(by_role, layer_roles, copies)
    requests += tuple(size for layer in layers for size in made[id(layer)])
    requests += _place(after, by_role, layout, rules)
    return RankWeights(stage=stage, by_role=by_role, requests=requests)


def _place(
    tensors: Iterable[Tensor], by_role: dict[Role, int], layout: ParallelLayout, rules: WeightRules
) -> tuple[int, ...]:
    """Add the tensors to `by_role` and return the sizes of the parameters that hold them.

    Engines merge what they compute at once: query, key and value projections into one matrix, gate and up into
    another, the experts of a layer into two stacks. A quantized matrix asks for its packed weights and for its scales
    apart.
    """
    merged: dict[tuple[str, int], int] = {}
    for tensor in tensors:
        parts = tensor_parts(tensor, layout, rules)
        by_role[tensor.role] = by_role.get(tensor.role, 0) + sum(parts)
        name = merged_name(tensor.name)
        for index, size in enumerate(parts):
            merged[name, index] = merged.get((name, index), 0) + size
    return tuple(merged.values())


def _count(total: dict[Role, int], layer: dict[Role, int], copies: int) -> None:
    for role, size in layer.items():
        total[role] = total.get(role, 0) + copies * size


@lru_cache(maxsize=4096)
def merged_name(name: str) -> str:
    """The name of the parameter that engines merge a checkpoint tensor into: its own for most."""
    for pattern, replacement in _MERGED:
        name = pattern.sub(replacement, name)
    return name


_MERGED = (
    (re.compile(r"\b[qkv]_proj\b"), "qkv_proj"),
    (re.compile(r"\b(?:query|key|value)\b"), "qkv"),
    (re.compile(r"\bexperts\.\*\.(?:gate_proj|up_proj|w1|w3)\b"), "experts.*.w13"),
    (re.compile(r"\b(?:gate_proj|up_proj)\b"), "gate_up_proj"),
    (re.compile(r"\b(?:w1|w3)\b"), "w13"),
)
