"""What is loaded beside the checkpoint: copies that latent attention absorbs, LoRA slots, a draft model.

Source: vllm/attention/backends/mla (process_weights_after_loading), vllm/lora/layers.py, vllm/spec_decode.
"""

from __future__ import annotations

from memplan.budget.weights import WeightRules, rank_weights, units_per_rank
from memplan.catalog.rules import Rules
from memplan.domain.attention import LatentAttention
from memplan.domain.model import Layer
from memplan.domain.serving import ServingSettings
from memplan.domain.tensors import Role, ShardKind, Tensor
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass, replace
from memplan.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Bytes by what they are for, the sizes in which they are allocated, and the draft model's caching layers."""

    absorbed_bytes: int = 0
    lora_bytes: int = 0
    draft_bytes: int = 0
    requests: tuple[int, ...] = ()
    draft_layers: tuple[Layer, ...] = ()


def extra_memory(
    layers: tuple[Layer, ...], asked: ServingSettings, settings: VllmSettings, rules: Rules, *, is_last: bool
) -> Extras:
    """Return what one rank loads beside the weights of its layers."""
    element_bytes = settings.dtype.bits // 8
    absorbed = _absorbed(layers, settings, rules, element_bytes)
    lora = _lora(layers, asked, settings, element_bytes)
    draft: tuple[int, ...] = ()
    draft_layers: tuple[Layer, ...] = ()
    if asked.draft is not None and is_last:
        alone = replace(settings.layout, pipeline=1)
        rank = rank_weights(asked.draft, alone, WeightRules(dtype=settings.dtype), 0)
        draft, draft_layers = rank.requests, asked.draft.layers
    return Extras(
        absorbed_bytes=sum(absorbed),
        lora_bytes=sum(lora),
        draft_bytes=sum(draft),
        requests=(*absorbed, *lora, *draft),
        draft_layers=draft_layers,
    )


def _absorbed(layers: tuple[Layer, ...], settings: VllmSettings, rules: Rules, element_bytes: int) -> tuple[int, ...]:
    """Latent attention decodes on products of its projections, kept beside the projections themselves.

    `halves` are kv_b_proj split by key and value, in 16 bits; `products` its key half times the query projection and
    its value half times the output projection, in FP8 for an FP8 model, and the rotary rows of the query projection.
    """
    if rules["mla_absorption"] == "none":
        return ()
    sizes: list[int] = []
    for layer in layers:
        for cache in layer.caches:
            if isinstance(cache, LatentAttention) and cache.num_heads:
                heads = ceil_div(cache.num_heads, settings.layout.tensor)
                if rules["mla_absorption"] == "products":
                    sizes.extend(_products(layer, cache, heads, element_bytes))
                    continue
                nope = cache.expanded_key_width - cache.rope_width
                sizes.append(heads * cache.latent_width * nope * element_bytes)
                sizes.append(heads * cache.latent_width * cache.expanded_value_width * element_bytes)
    return tuple(sizes)


def _products(layer: Layer, cache: LatentAttention, heads: int, element_bytes: int) -> tuple[int, ...]:
    """The absorbed products of one layer on one rank: query side, output side, rotary rows."""
    query = next((t for t in layer.tensors if t.name.endswith(("q_b_proj.weight", "q_proj.weight"))), None)
    output = next((t for t in layer.tensors if t.name.endswith("o_proj.weight")), None)
    if query is None or output is None:
        return ()
    stored_bytes = 1 if query.storage is not None else element_bytes
    latent = heads * cache.latent_width
    return (
        query.shape[-1] * latent * stored_bytes,
        latent * output.shape[-2] * stored_bytes,
        query.shape[-1] * heads * cache.rope_width * element_bytes,
    )


def _lora(
    layers: tuple[Layer, ...], asked: ServingSettings, settings: VllmSettings, element_bytes: int
) -> tuple[int, ...]:
    """Two stacks per Linear layer of attention and MLP: slots x rank x input, and slots x output x rank.

    The stack that faces the cut axis is cut with it, the other is whole on every rank.
    """
    slots, rank = asked.lora.max_loras, asked.lora.max_rank
    if not slots:
        return ()
    sizes: list[int] = []
    for layer in layers:
        for tensor in layer.tensors:
            if tensor.linear and tensor.role in (Role.ATTENTION, Role.MLP, Role.SHARED_EXPERT):
                out_width, in_width = _kept_widths(tensor, settings.layout.tensor)
                sizes.append(slots * rank * in_width * element_bytes)
                sizes.append(slots * rank * out_width * element_bytes)
    return tuple(sizes)


def _kept_widths(tensor: Tensor, ranks: int) -> tuple[int, int]:
    """Output and input width of a Linear layer on one rank."""
    out_width, in_width = tensor.shape[-2], tensor.shape[-1]
    if tensor.shard.kind is ShardKind.REPLICATED or ranks == 1:
        return out_width, in_width
    kept = units_per_rank(tensor.shard, ranks) / tensor.shard.pieces
    is_row = tensor.name.rsplit(".", 2)[-2] in ("o_proj", "down_proj", "out_proj", "dense", "c_proj", "w2", "wo")
    return (out_width, round(in_width * kept)) if is_row else (round(out_width * kept), in_width)
