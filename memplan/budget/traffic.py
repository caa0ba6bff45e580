"""What a pass computes and moves: FLOPs per token, weight bytes per step, cache bytes per sequence, on one rank.

Formulas (docs/speed-model.md, "Traffic"):

    matrix FLOPs of a token     2 x the elements of every matrix it goes through (of E experts only the e it is sent to)
    attention FLOPs of a token  2 x query heads x (key width + value width) for every token it looks at
    weights read by a step      every dense matrix once; of E experts E x (1 - (1 - e/E)^T) with T tokens in the step
    cache read by a step        what each sequence keeps: a window's last tokens, a latent once for all heads, a
                                recurrent state twice (read and written back)

Llama-3.1-70B in BF16: 2 x (70.55e9 - 1.05e9 embedding) = 139.0 GFLOP a token and 139.0 GB of weights a step, and
327,680 bytes of cache per token of context. Embedding tables are looked up, not multiplied: they count only where they
are the head as well.

Not modelled: norms and activations (they are in the fitted fractions), uneven routing, towers of images and sound.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from memplan.budget.kv_cache import KvFormat, sequence_bytes, token_bytes
from memplan.budget.weights import WeightRules, tensor_bytes
from memplan.domain.attention import (
    Cache,
    ChunkedLocal,
    CompressedAttention,
    CrossAttention,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LatentWindow,
    LinearState,
    NoCache,
    SharedKV,
    SlidingWindow,
)
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.tensors import Role, ShardKind, Tensor
from memplan.records import Same, dataclass
from memplan.units import ceil_div

Rate = Literal["16", "fp8", "int8", "fp4", "mxfp4"]

# How many tokens a sparse indexer leaves to the attention behind it. Source: `index_topk` of DeepSeek V3.2's and V4's
# published configs.
INDEXED_TOKENS = 2048
# Decay, outer product and read-out of a recurrent state: three multiply-adds an element and token.
_STATE_FLOPS = 6
_ONE_RANK = ParallelLayout()
_LOOKED_UP = (Role.EMBEDDING, Role.POSITION)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertGroup:
    """The routed experts of equal layers on one rank: their bytes all together, and the FLOPs of one token."""

    num_experts: int
    experts_per_token: int
    size_bytes: int
    token_flops: float
    rate: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionGroup:
    """Layers that keep the same: how many of them, and the query heads of the whole model."""

    caches: tuple[Cache, ...]
    num_layers: int
    num_heads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """What one rank does in a pass through all layers, summed over equal layers.

    `dense_bytes` are read by every pass, `head_bytes` by a pass that samples. `token_flops` are of the dense matrices,
    by the rate they run at; `head_flops` per sampled token. `packed_share` is the part of all bytes that is packed
    below 8 bit and unpacked to 16 before it is multiplied. `reductions` counts the collectives over tensor-parallel
    ranks, `expert_layers` those that exchange tokens under expert parallelism.
    """

    dense_bytes: int
    head_bytes: int
    token_flops: tuple[tuple[Rate, float], ...]
    head_flops: float
    experts: tuple[ExpertGroup, ...]
    attention: tuple[AttentionGroup, ...]
    num_layers: int
    reductions: int
    expert_layers: int
    hidden_size: int
    tensor: int
    packed_share: float = 0.0

    @property
    def weights_bytes(self) -> int:
        """All of the weights that passes ever read on this rank."""
        return self.dense_bytes + self.head_bytes + sum(group.size_bytes for group in self.experts)


def model_passes(spec: ModelSpec, layout: ParallelLayout, dtype: DType) -> Passes:
    """What one tensor-parallel rank would do if it held all layers; a pipeline stage does its share of it."""
    return _model_passes(Same(spec), layout, dtype)


@lru_cache(maxsize=512)
def _model_passes(same: Same, layout: ParallelLayout, dtype: DType) -> Passes:
    spec = same.record
    assert isinstance(spec, ModelSpec)
    rules = WeightRules(dtype=dtype)
    dense_bytes = head_bytes = reductions = expert_layers = 0
    head_flops, all_bytes, packed_bytes = 0.0, 0, 0
    flops: dict[Rate, float] = {}
    experts: dict[tuple[int, int, Rate], tuple[int, float]] = {}
    attention: dict[tuple[tuple[Cache, ...], int], int] = {}
    for tensor in spec.shared:
        if _is_head(tensor, spec):
            size = tensor_bytes(tensor, layout, rules)
            head_bytes += size
            all_bytes += size
            packed_bytes += size * _is_packed(tensor)
            head_flops += _token_flops(tensor, layout, rules)
        elif tensor.role not in _LOOKED_UP:
            dense_bytes += tensor_bytes(tensor, layout, rules)
    for layer, copies in spec.distinct_layers():
        chosen = layer.mlp.experts_per_token if layer.mlp else 0
        total = layer.mlp.num_experts if layer.mlp else 0
        for tensor in layer.tensors:
            size, work = tensor_bytes(tensor, layout, rules), _token_flops(tensor, layout, rules)
            rate = matrix_rate(tensor)
            all_bytes += copies * size
            packed_bytes += copies * size * _is_packed(tensor)
            if total and _is_routed(tensor):
                key = (total, chosen, rate)
                have, did = experts.get(key, (0, 0.0))
                experts[key] = (have + copies * size, did + copies * work * chosen / total)
            else:
                dense_bytes += copies * size
                flops[rate] = flops.get(rate, 0.0) + copies * work
        caches = tuple(_read_cache(cache, spec) for cache in layer.caches)
        attention[caches, layer.num_heads] = attention.get((caches, layer.num_heads), 0) + copies
        reductions += copies * _layer_reductions(layer)
        expert_layers += copies * bool(total)
    return Passes(
        dense_bytes=dense_bytes,
        head_bytes=head_bytes,
        token_flops=tuple(flops.items()),
        head_flops=head_flops,
        experts=tuple(
            ExpertGroup(num_experts=total, experts_per_token=chosen, size_bytes=size, token_flops=work, rate=rate)
            for (total, chosen, rate), (size, work) in experts.items()
        ),
        attention=tuple(
            AttentionGroup(caches=caches, num_layers=count, num_heads=heads)
            for (caches, heads), count in attention.items()
        ),
        num_layers=spec.num_layers,
        reductions=reductions + 1,
        expert_layers=expert_layers,
        hidden_size=spec.hidden_size,
        tensor=layout.tensor,
        packed_share=packed_bytes / all_bytes if all_bytes else 0.0,
    )


def _is_head(tensor: Tensor, spec: ModelSpec) -> bool:
    return tensor.role is Role.LM_HEAD or (spec.tied_embeddings and tensor.role is Role.EMBEDDING)


def _is_routed(tensor: Tensor) -> bool:
    return tensor.role is Role.EXPERT or tensor.shard.kind is ShardKind.EXPERTS


def _is_packed(tensor: Tensor) -> bool:
    return tensor.storage is not None and tensor.storage.bits < 8 and matrix_rate(tensor) == "16"


def _token_flops(tensor: Tensor, layout: ParallelLayout, rules: WeightRules) -> float:
    """Two operations for every element of a matrix that the rank keeps; vectors are not multiplied with."""
    if len(tensor.shape) < 2:
        return 0.0
    whole = tensor_bytes(tensor, _ONE_RANK, rules)
    return 2.0 * tensor.num_elements * tensor_bytes(tensor, layout, rules) / whole if whole else 0.0


def _layer_reductions(layer: Layer) -> int:
    """One all-reduce behind the mixer and one behind the feed-forward half, where the layer has them."""
    has_mixer = layer.query_width > 0 or any(isinstance(cache, LinearState) for cache in layer.caches)
    return int(has_mixer) + int(layer.mlp is not None)


def _read_cache(cache: Cache, spec: ModelSpec) -> Cache:
    """The cache that a layer reads: another layer's, where it has none of its own."""
    if not isinstance(cache, SharedKV) or cache.source_layer >= spec.num_layers:
        return cache
    source = spec.layers[cache.source_layer].caches
    return next((each for each in source if not isinstance(each, SharedKV)), cache)


def matrix_rate(tensor: Tensor) -> Rate:
    """The arithmetic a stored matrix is multiplied in, on a GPU that has it: 16 bit for whatever keeps only its
    weights small (GPTQ, AWQ, bitsandbytes, GGUF, W8A16).
    """
    scheme = tensor.storage.scheme if tensor.storage else ""
    if scheme.startswith(("fp8", "mxfp8")):
        return "fp8"
    if scheme.startswith("w8a8-int8"):
        return "int8"
    if scheme.startswith("nvfp4"):
        return "fp4"
    return "mxfp4" if scheme.startswith("mxfp4") else "16"


def distinct_experts(num_experts: int, experts_per_token: int, tokens: float) -> float:
    """The experts that a step of `tokens` tokens is expected to touch, each token choosing at random.

    8 of 256 experts: 1 token reads 8, 32 tokens 163, 256 tokens all but 0.08. Real routing is less even, so fewer.
    """
    missed = float((1.0 - experts_per_token / num_experts) ** tokens)
    return num_experts * (1.0 - missed)


def experts_read_bytes(passes: Passes, tokens: float) -> float:
    """Bytes of routed experts that a rank reads in a pass of `tokens` tokens."""
    return sum(
        group.size_bytes * distinct_experts(group.num_experts, group.experts_per_token, tokens) / group.num_experts
        for group in passes.experts
    )


def weights_read_bytes(passes: Passes, tokens: float) -> float:
    """Bytes of weights that a rank reads in a pass of `tokens` tokens."""
    return passes.dense_bytes + passes.head_bytes + experts_read_bytes(passes, tokens)


def matrix_flops(passes: Passes, tokens: float, sampled: float) -> dict[Rate, float]:
    """FLOPs of a pass of `tokens` tokens that samples after `sampled` of them, by the rate they run at."""
    flops: dict[Rate, float] = {rate: work * tokens for rate, work in passes.token_flops}
    for group in passes.experts:
        flops[group.rate] = flops.get(group.rate, 0.0) + group.token_flops * tokens
    flops["16"] = flops.get("16", 0.0) + passes.head_flops * sampled
    return flops


def cache_read_bytes(passes: Passes, form: KvFormat, context_tokens: float) -> float:
    """Bytes of cache that a step reads and writes for one sequence of `context_tokens` tokens, on one rank."""
    return sum(
        group.num_layers * _layer_read_bytes(group.caches, form, context_tokens, passes.tensor)
        for group in passes.attention
    )


def _layer_read_bytes(caches: tuple[Cache, ...], form: KvFormat, context_tokens: float, ranks: int) -> float:
    tokens, indexed = round(context_tokens), any(isinstance(cache, IndexerKeys) for cache in caches)
    read = 0.0
    for cache in caches:
        if isinstance(cache, LinearState):
            read += 2 * sequence_bytes(cache, form, tokens, ranks)
        elif indexed and isinstance(cache, LatentAttention):
            read += sequence_bytes(cache, form, min(tokens, INDEXED_TOKENS), ranks)
        else:
            read += sequence_bytes(cache, form, tokens, ranks) + token_bytes(cache, form, ranks)
    return read


def attention_flops(passes: Passes, start: float, end: float, *, expanded: bool = False) -> float:
    """FLOPs of attention for the tokens of one sequence at positions `start` up to `end`, on one rank.

    `expanded` computes latent attention as a prefill does, on keys and values of full width; a decode step works on
    the latents themselves.
    """
    total = 0.0
    for group in passes.attention:
        heads = ceil_div(group.num_heads, passes.tensor) if group.num_heads else 0
        indexed = any(isinstance(cache, IndexerKeys) for cache in group.caches)
        for cache in group.caches:
            width = _score_width(cache, heads, passes.tensor, expanded=expanded)
            total += 2.0 * group.num_layers * width * looked_at(cache, start, end, indexed=indexed)
    return total


def _score_width(cache: Cache, heads: int, ranks: int, *, expanded: bool) -> float:
    """Multiply-adds for one pair of tokens in one layer: all heads, scores and weighted sum."""
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal, CrossAttention)):
        return heads * (cache.key_width + cache.value_width)
    if isinstance(cache, LatentAttention):
        if expanded:
            return heads * (cache.expanded_key_width + cache.expanded_value_width)
        return heads * (2 * cache.latent_width + cache.rope_width)
    if isinstance(cache, (LatentWindow, CompressedAttention)):
        return heads * (2 * cache.latent_width + cache.rope_width)
    if isinstance(cache, IndexerKeys):
        return heads * cache.key_width
    if isinstance(cache, LinearState):
        return _STATE_FLOPS / 2 * cache.state_elements / ranks
    if isinstance(cache, (SharedKV, NoCache)):
        return 0.0
    raise AssertionError(f"unhandled cache: {cache}")


def looked_at(cache: Cache, start: float, end: float, *, indexed: bool = False) -> float:
    """How many pairs of tokens the positions `start` up to `end` make with what they look at, themselves included."""
    if isinstance(cache, LinearState):
        return end - start
    if isinstance(cache, CrossAttention):
        return (end - start) * cache.source_tokens
    if isinstance(cache, (SlidingWindow, LatentWindow)):
        return _clipped_sum(end, cache.window_tokens) - _clipped_sum(start, cache.window_tokens)
    if isinstance(cache, ChunkedLocal):
        return _chunked_sum(end, cache.chunk_tokens) - _chunked_sum(start, cache.chunk_tokens)
    if indexed and isinstance(cache, LatentAttention):
        return _clipped_sum(end, INDEXED_TOKENS) - _clipped_sum(start, INDEXED_TOKENS)
    ratio = cache.ratio if isinstance(cache, (CompressedAttention, IndexerKeys)) else 1
    return (_triangle(end) - _triangle(start)) / ratio


def _triangle(tokens: float) -> float:
    return tokens * (tokens + 1) / 2


def _clipped_sum(tokens: float, limit: float) -> float:
    """1 + 2 + ... + tokens, with no summand above `limit`."""
    return _triangle(min(tokens, limit)) + max(0.0, tokens - limit) * limit


def _chunked_sum(tokens: float, chunk: int) -> float:
    whole, rest = divmod(tokens, chunk)
    return whole * _triangle(chunk) + _triangle(rest)
