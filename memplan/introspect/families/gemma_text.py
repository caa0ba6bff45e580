"""The language models of Gemma 3n and Gemma 4: shared caches, inputs for every layer, wide heads in full layers.

The last `num_kv_shared_layers` layers have no keys and values of their own: each reads the last earlier layer of its
kind. Their key and value projections, which some published checkpoints still hold, are not counted.

Source: transformers 5.23, `models/{gemma3n,gemma4}`.
"""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.attention import Cache, SharedKV
from memplan.domain.model import Mlp
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.families.decoder import Decoder, Frame
from memplan.introspect.stack import Feed, Mixer, is_set, per_layer
from memplan.records import dataclass

_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True, slots=True)
class Sharing:
    """One layer's kind, and the layer whose keys and values it reads; None for its own."""

    kind: str
    source_layer: int | None


def sharing(config: Config, kinds: Sequence[str], num_shared: int) -> tuple[Sharing, ...]:
    """Say for every layer whose cache it reads.

    Raises: UnsupportedModel when a kind of layer is shared that no layer keeps.
    """
    first = len(kinds) - num_shared
    if first < 0:
        raise UnsupportedModel(f"config key `num_kv_shared_layers` is {num_shared}, of {len(kinds)} layers")
    last = {kind: index for index, kind in enumerate(kinds[:first])}
    if missing := set(kinds[first:]) - set(last):
        raise UnsupportedModel(f"no layer of kind `{min(missing)[:40]}` keeps the cache that later layers share")
    return tuple(Sharing(kind, last[kind] if index >= first else None) for index, kind in enumerate(kinds))


def _kinds(config: Config, period: int, *, last_is_full: bool) -> tuple[str, ...]:
    kinds = windows.layer_types(config, config.num_layers(), windows.last_full(period))
    for kind in set(kinds) - {windows.FULL, windows.SLIDING}:
        raise windows.unknown_kind(kind, (windows.FULL, windows.SLIDING))
    return (*kinds[:-1], windows.FULL) if last_is_full else kinds


def _attention(config: Config, heads: Heads, cache: Cache, *, keys: bool, values: bool) -> Mixer:
    """Attention with norms of queries and keys; a layer that reads another's cache has only queries."""
    bias = is_set(config, "attention_bias")
    query, *rest = blocks.attention(heads, qkv_bias=bias, out_bias=bias)
    wanted = {"q": True, "k": keys, "v": values, "o": True}
    tensors = [tensor for tensor in (query, *rest) if wanted[tensor.name.removeprefix("self_attn.")[0]]]
    norms = ("self_attn.q_norm", "self_attn.k_norm") if keys else ("self_attn.q_norm",)
    return Mixer(
        tensors=(*tensors, *blocks.norms(norms, heads.key_width)),
        caches=(cache,),
        query_width=heads.query_width,
        num_heads=heads.num_heads,
    )


def _mixers(config: Config, layout: Sequence[Sharing], wide: Heads, narrow: Heads, window: int) -> Sequence[Mixer]:
    """Full layers have the heads of `wide`, windowed ones those of `narrow`."""
    same = config.bool("attention_k_eq_v", default=False)

    def mixer(layer: Sharing) -> Mixer:
        is_full = layer.kind == windows.FULL
        heads = wide if is_full else narrow
        if layer.source_layer is not None:
            return _attention(config, heads, SharedKV(layer.source_layer), keys=False, values=False)
        cache = heads.full() if is_full else heads.window(window)
        return _attention(config, heads, cache, keys=True, values=not (same and is_full))

    return per_layer(layout, mixer)


def _gemma4_layout(config: Config) -> tuple[Sharing, ...]:
    shared = config.int("num_kv_shared_layers", default=0, minimum=0)
    return sharing(config, _kinds(config, 6, last_is_full=True), shared)


def _gemma4_mixers(config: Config) -> Sequence[Mixer]:
    narrow = blocks.read_heads(config, default_kv=4, head_dim=256)
    kv = narrow.num_kv_heads
    if config.bool("attention_k_eq_v", default=False):
        kv = config.int("num_global_key_value_heads", default=kv)
    head_width = config.int("global_head_dim", default=512)
    wide = Heads(
        hidden=narrow.hidden,
        num_heads=narrow.num_heads,
        num_kv_heads=kv,
        key_width=head_width,
        value_width=head_width,
    )
    window = config.int("sliding_window", default=1024 if _is_unified(config) else 512)
    if config.get("use_bidirectional_attention") == "all":
        window = window // 2 + 1
    return _mixers(config, _gemma4_layout(config), wide, narrow, window)


def _gemma4_feeds(config: Config) -> Sequence[Feed]:
    """A dense MLP, twice as wide in layers that share a cache, and experts beside it in the MoE model."""
    hidden, intermediate = config.int(*blocks.HIDDEN), config.int("intermediate_size")
    doubles = config.bool("use_double_wide_mlp", default=False)

    def feed(is_shared: bool) -> Feed:
        width = 2 * intermediate if doubles and is_shared else intermediate
        tensors = [*blocks.mlp(hidden, width), *_per_layer_input(config, hidden)]
        tensors.append(blocks.vector("layer_scalar", 1, Role.OTHER, is_buffer=True))
        if not config.bool("enable_moe_block", default=False):
            return Feed(tensors=tuple(tensors), mlp=Mlp(intermediate=width))
        inner, num_experts = config.int("moe_intermediate_size"), config.int("num_experts")
        tensors += [
            *blocks.replicated("router.proj", num_experts, hidden, Role.ROUTER),
            blocks.vector("router.scale", hidden, Role.ROUTER),
            blocks.vector("router.per_expert_scale", num_experts, Role.ROUTER),
            *blocks.experts(
                hidden,
                inner,
                num_experts,
                prefix="experts",
                names=("gate_up_proj", "down_proj"),
                fused=True,
                suffix="",
            ),
            *blocks.norms(
                ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"), hidden
            ),
        ]
        shape = Mlp(
            intermediate=inner,
            num_experts=num_experts,
            experts_per_token=config.int("top_k_experts"),
            shared_intermediate=width,
        )
        return Feed(tensors=tuple(tensors), mlp=shape)

    return per_layer([layer.source_layer is not None for layer in _gemma4_layout(config)], feed)


def _input_width(config: Config) -> int:
    """How wide a token's own input to every layer is; the unified models have none."""
    return config.int("hidden_size_per_layer_input", default=0 if _is_unified(config) else 256, minimum=0)


def _is_unified(config: Config) -> bool:
    return config.str("model_type").startswith("gemma4_unified")


def _per_layer_input(config: Config, hidden: int) -> tuple[Tensor, ...]:
    """What brings a token's own input for this layer into it."""
    width = _input_width(config)
    if not width:
        return ()
    return (
        *blocks.replicated("per_layer_input_gate", width, hidden, Role.MLP),
        *blocks.replicated("per_layer_projection", hidden, width, Role.MLP),
        *blocks.norm("post_per_layer_input_norm", hidden),
    )


def _per_layer_tables(config: Config) -> tuple[Tensor, ...]:
    """The table of inputs for all layers, and the map that mixes them with the embedding."""
    width = _input_width(config)
    if not width:
        return ()
    hidden, all_layers = config.int(*blocks.HIDDEN), config.num_layers() * width
    vocab = config.int("vocab_size_per_layer_input", default=262144)
    return (
        blocks.embedding("model.embed_tokens_per_layer", vocab, all_layers),
        *blocks.column("model.per_layer_model_projection", all_layers, hidden, all_layers, Role.EMBEDDING),
        *blocks.norm("model.per_layer_projection_norm", width),
    )


GEMMA4 = Decoder(
    mixers=_gemma4_mixers, feeds=_gemma4_feeds, norms=_NORMS, frame=Frame(tied=True, extra=_per_layer_tables)
)


def _gemma3n_mixers(config: Config) -> Sequence[Mixer]:
    heads = blocks.read_heads(config, default_kv=2, head_dim=256)
    shared = config.int("num_kv_shared_layers", default=15, minimum=0)
    layout = sharing(config, _kinds(config, 5, last_is_full=False), shared)
    return _mixers(config, layout, heads, heads, config.int("sliding_window", default=512))


def _gemma3n_feeds(config: Config) -> Sequence[Feed]:
    """An MLP whose width may differ from layer to layer, and the four streams that AltUp predicts and corrects."""
    hidden, num_layers = config.int(*blocks.HIDDEN), config.num_layers()
    if isinstance(config.get("intermediate_size"), (list, tuple)):
        widths = config.ints("intermediate_size")
    else:
        widths = (config.int("intermediate_size", default=16384),) * num_layers
    if len(widths) != num_layers or min(widths) < 1:
        raise UnsupportedModel(f"config key `intermediate_size` must have a width for each of {num_layers} layers")
    streams, rank = config.int("altup_num_inputs", default=4), config.int("laurel_rank", default=64)
    beside = (
        blocks.vector("altup.correct_output_scale", hidden, Role.OTHER),
        *blocks.replicated("altup.correction_coefs", streams, streams, Role.OTHER),
        *blocks.replicated("altup.prediction_coefs", streams**2, streams, Role.OTHER),
        *blocks.replicated("altup.modality_router", streams, hidden, Role.OTHER),
        *blocks.norm("altup.router_norm", hidden),
        *blocks.replicated("laurel.linear_left", rank, hidden, Role.MLP),
        *blocks.replicated("laurel.linear_right", hidden, rank, Role.MLP),
        *blocks.norm("laurel.post_laurel_norm", hidden),
        *_per_layer_input(config, hidden),
    )
    return per_layer(
        widths,
        lambda width: Feed(tensors=(*blocks.mlp(hidden, width), *beside), mlp=Mlp(intermediate=width)),
    )


def _gemma3n_tables(config: Config) -> tuple[Tensor, ...]:
    hidden = config.int(*blocks.HIDDEN)
    others = config.int("altup_num_inputs", default=4) - 1
    maps = tuple(
        Tensor(name=f"model.{name}.*.weight", shape=(hidden, hidden), role=Role.OTHER, count=others, linear=True)
        for name in ("altup_projections", "altup_unembed_projections")
        if others
    )
    return (*_per_layer_tables(config), *maps)


GEMMA3N = Decoder(
    mixers=_gemma3n_mixers, feeds=_gemma3n_feeds, norms=_NORMS, frame=Frame(tied=True, extra=_gemma3n_tables)
)
