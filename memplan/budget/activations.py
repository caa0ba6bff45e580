"""What a forward pass holds at its peak, beside weights and cache.

Inference keeps no activation of a layer that is done, so the peak is that of one layer, not the sum of all: the
residual and a few hidden states, the projections of the widest half of a layer, and for routed experts the tokens
multiplied by the experts each is sent to. Every width is per tensor-parallel rank; hidden states are whole on each.

Formula (docs/memory-model.md, "Activations"), in elements per token of the step:

    dense MLP       2 I (gate and up) + I (their product) + h H        without a gate: 2 I + h H
    attention       queries + keys + values + output + h H
    recurrent mixer everything projected from the hidden state + channels convolved + what is projected back + h H
    routed experts  k (max(2 I, H) + I) + shared + h H                 for at most `expert_chunk_tokens` tokens

Weights that are unpacked before they are multiplied (bitsandbytes) add one projection's weights in 16 bits and its own
output, or, where the kernel computes in another type than the model, the widest output once more.
"""

from __future__ import annotations

from memplan.budget.kv_cache import kept_heads
from memplan.domain.attention import (
    ChunkedLocal,
    CrossAttention,
    FullAttention,
    LatentAttention,
    LinearState,
    SlidingWindow,
)
from memplan.domain.model import Layer, Mlp, ModelSpec
from memplan.domain.tensors import Role, ShardKind
from memplan.records import dataclass
from memplan.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardRules:
    """How an engine runs a layer: hidden states alive beside the widest projection, and the tokens experts take at a
    time. `in_workspace` says that routed experts work in a buffer that is counted elsewhere, `unpacks` that a
    projection's weights are unpacked before they are multiplied, `casts` that its output is then cast.
    """

    hidden_copies: float = 3.0
    expert_chunk_tokens: int = 32768
    shares_expert_buffers: bool = True
    in_workspace: bool = False
    unpacks: bool = False
    casts: bool = False


def forward_peak_bytes(
    layers: tuple[Layer, ...], spec: ModelSpec, tokens: int, ranks: int, element_bytes: int, rules: ForwardRules
) -> int:
    """The peak of a pass of `tokens` tokens through `layers` on one of `ranks` tensor-parallel ranks."""
    distinct = {id(layer): layer for layer in layers}.values()
    widest = max((_layer_elements(layer, spec, tokens, ranks, rules) for layer in distinct), default=0)
    return round((widest + rules.hidden_copies * spec.hidden_size * tokens) * element_bytes)


def _layer_elements(layer: Layer, spec: ModelSpec, tokens: int, ranks: int, rules: ForwardRules) -> float:
    """Elements of the wider half of a layer, hidden states aside."""
    return max(
        _mixer_elements(layer, spec.hidden_size, tokens, ranks),
        _mlp_elements(layer.mlp, spec.hidden_size, tokens, ranks, rules),
    )


def _mixer_elements(layer: Layer, hidden: int, tokens: int, ranks: int) -> float:
    width = 0.0
    query = layer.query_width / ranks
    for cache in layer.caches:
        if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal, CrossAttention)):
            keys = kept_heads(cache.num_kv_heads, ranks) * (cache.key_width + cache.value_width)
            width += 2 * query + keys
        elif isinstance(cache, LatentAttention):
            heads = cache.num_heads / ranks
            width += heads * 2 * (cache.expanded_key_width + cache.expanded_value_width)
        elif isinstance(cache, LinearState):
            width += _recurrent_width(layer, hidden, ranks)
    return width * tokens


def _recurrent_width(layer: Layer, hidden: int, ranks: int) -> float:
    """Elements per token of a recurrent mixer's step: inputs and gates, the convolved channels, and its output.

    Read off the layer's tensors: what is projected from the hidden state has its width, what projects back reads the
    output. The states themselves are in the cache. Not modelled: what a scan passes from chunk to chunk.
    """
    width = 0.0
    for tensor in layer.tensors:
        if tensor.role is not Role.STATE or len(tensor.shape) < 2:
            continue
        kept = 1 if tensor.shard.kind is ShardKind.REPLICATED else ranks
        if tensor.linear and tensor.shape[-2] == hidden and _projects_back(tensor.name):
            width += tensor.shape[-1] / kept
        elif (tensor.linear and tensor.shape[-1] == hidden) or "conv" in tensor.name:
            width += tensor.shape[0] / kept
    return width


def _projects_back(name: str) -> bool:
    module = name.rsplit(".", 2)[-2]
    return module in ("o_proj", "out_proj", "output", "ssm_out")


def _mlp_elements(mlp: Mlp | None, hidden: int, tokens: int, ranks: int, rules: ForwardRules) -> float:
    if mlp is None:
        return 0.0
    ups = 2 if mlp.gated else 1
    if not mlp.num_experts:
        return _dense_elements(ups, mlp.intermediate / ranks, hidden, tokens, rules)
    routed = mlp.experts_per_token
    up, down = ups * mlp.intermediate / ranks, float(hidden)
    wide = max(up, down) if rules.shares_expert_buffers else up + down
    experts = routed * (wide + mlp.intermediate / ranks) * min(tokens, rules.expert_chunk_tokens)
    shared = (ups + 1) * mlp.shared_intermediate / ranks * tokens
    if rules.in_workspace:
        experts = 0.0
    return experts + max(shared, hidden * tokens if mlp.shared_intermediate else 0)


def _dense_elements(ups: int, inner: float, hidden: int, tokens: int, rules: ForwardRules) -> float:
    """The up projections and their product; with weights to unpack, also the moments within the up projection."""
    product = (ups + 1) * inner * tokens
    if not rules.unpacks:
        return product
    cast = hidden * tokens if rules.casts else 0
    unpacked = (ups + 1) * inner * tokens + inner * hidden + cast
    return max(product, unpacked, 2 * ups * inner * tokens + cast if rules.casts else 0.0)


def sampler_peak_bytes(sequences: int, vocab_size: int, bytes_per_logit: float) -> int:
    """The peak of sampling one token for `sequences` sequences over the vocabulary, logits included."""
    return round(sequences * vocab_size * bytes_per_logit)


def media_tower_bytes(patches: int, hidden: int, intermediate: int, items: int, element_bytes: int, ranks: int) -> int:
    """The peak of a vision or audio tower over `items` inputs at once: its widest layer, as a dense MLP without a
    gate.
    """
    return round(patches * items * (2 * ceil_div(intermediate, ranks) + 4 * hidden) * element_bytes)
