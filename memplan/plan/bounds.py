"""Bounds that decide before an engine is asked: what must be true of every candidate of a region, cheaply computed.

All of them err to the side of letting a candidate through, so that nothing is ruled out that an engine would take.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.budget.kv_cache import kv_format, sequence_bytes
from memplan.budget.storage import checkpoint_bytes
from memplan.domain.attention import IndexerKeys
from memplan.domain.dtypes import DType
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.errors import UsageError
from memplan.units import format_gib

# Bits of an element of the block types that llama.cpp caches in, scales included.
LLAMA_CPP_CACHE_BITS: Mapping[str, float] = {
    "q8_0": 8.5,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_1": 5.0,
    "q4_0": 4.5,
    "iq4_nl": 4.5,
}


def weight_bytes(spec: ModelSpec) -> int:
    """Bytes of the language model's weights that every engine keeps: no towers, no predictors."""
    towers = sum(tower.num_parameters for tower in spec.towers) * 2
    return max(0, checkpoint_bytes(spec, with_mtp=False) - towers)


def request_bytes(spec: ModelSpec, kv_dtype: str | None, context_tokens: int) -> float:
    """The least that one request of `context_tokens` keeps in the caches of all layers."""
    if kv_dtype is not None and kv_dtype in LLAMA_CPP_CACHE_BITS:
        return _sequence_bytes(spec, None, context_tokens) * LLAMA_CPP_CACHE_BITS[kv_dtype] / 16
    return _sequence_bytes(spec, kv_dtype, context_tokens)


def _sequence_bytes(spec: ModelSpec, kv_dtype: str | None, context_tokens: int) -> float:
    compute = spec.dtype if spec.dtype in (DType.F16, DType.BF16) else DType.F16
    try:
        form = kv_format(kv_dtype, compute)
    except UsageError:
        return 0.0
    return sum(
        copies * sequence_bytes(cache, form, context_tokens)
        for layer, copies in spec.distinct_layers()
        for cache in layer.caches
        if not isinstance(cache, IndexerKeys)
    )


def missing_for_weights(weights: int, gpu: GpuSpec, layout: ParallelLayout, offload_bytes: int) -> str | None:
    """Why the weights alone are too much for the ranks of one replica; None when they may have room."""
    ranks = layout.tensor * layout.pipeline * (layout.data if layout.expert else 1)
    room = ranks * (gpu.visible_high_bytes + offload_bytes)
    if weights <= room:
        return None
    return f"{format_gib(weights)} of weights on {ranks} x {format_gib(gpu.memory_bytes)}"


def most_requests(weights: int, request: float, gpu: GpuSpec, layout: ParallelLayout, offload_bytes: int) -> float:
    """An upper bound of the requests that have room at once in all replicas."""
    if request <= 0:
        return float("inf")
    kept = weights if layout.expert else weights * layout.data
    room = layout.num_ranks * (gpu.visible_high_bytes + offload_bytes) - kept
    return max(0.0, room / request)
