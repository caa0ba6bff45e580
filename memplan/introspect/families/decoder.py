"""Ordinary decoders: softmax attention and an MLP or routed experts in every layer, told apart by a line of knobs.

A family whose layers hold something else (latent attention, recurrent mixers, fused projections with a shape of their
own, towers) has a file of its own beside this one and calls `build_decoder` for what it shares.

Checked by: the parameter counts of every catalogue model, and transformers' own modules on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from memplan.domain.attention import Cache, ChunkedLocal, SlidingWindow
from memplan.domain.dtypes import DType, parse_compute_dtype
from memplan.domain.model import Layer, Mlp, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config

Flag = bool | str  # a fixed answer, or the config key that gives it (absent means False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """How a family names its routed experts, and which of its layers have them."""

    num_experts: tuple[str, ...] = ("num_experts", "num_local_experts", "n_routed_experts")
    experts_per_token: tuple[str, ...] = ("num_experts_per_tok",)
    intermediate: tuple[str, ...] = ("moe_intermediate_size", "intermediate_size")
    prefix: str = "mlp.experts.*"
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    bias: bool = False
    router: str = "mlp.gate"
    router_bias: bool = False
    is_routed: Callable[[Config, int], bool] = field(default=lambda config, index: True)
    extra: Callable[[Config, int], tuple[Tensor, ...]] = field(default=lambda config, hidden: ())
    shared_intermediate: Callable[[Config], int] = field(default=lambda config: 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The knobs of an ordinary decoder family. Calling it builds the ModelSpec."""

    qkv_bias: Flag = False
    out_bias: Flag = False
    mlp_bias: Flag = False
    attention_prefix: str = "self_attn"
    attention_names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    mlp_prefix: str = "mlp"
    mlp_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_bias: bool = False
    qk_norm: str = "none"  # none, head (one weight of head width), full (one weight of the projection's width)
    tied: bool = False
    head_bias: bool = False
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"
    layer_prefix: str = "model.layers."
    window: str = "none"  # none, always, qwen2, types
    routed: Routed | None = None

    def __call__(self, config: Config, name: str) -> ModelSpec:
        heads = blocks.read_heads(config)
        num_layers = config.num_layers()
        caches = layer_caches(config, heads, num_layers, self.window)
        made: dict[object, Layer] = {}
        layers: list[Layer] = []
        for index in range(num_layers):
            routed = bool(self.routed and self.routed.is_routed(config, index))
            key = (caches[index], routed)
            if key not in made:
                made[key] = self._layer(config, heads, caches[index], routed)
            layers.append(made[key])
        return build_decoder(config, name, layers=tuple(layers), style=self)

    def _layer(self, config: Config, heads: Heads, cache: Cache, routed: bool) -> Layer:
        feed_forward, shape = self._feed_forward(config, heads.hidden, routed)
        return Layer(
            kind="moe" if routed else "dense",
            caches=(cache,),
            query_width=heads.query_width,
            num_heads=heads.num_heads,
            mlp=shape,
            tensors=(
                *blocks.attention(
                    heads,
                    prefix=self.attention_prefix,
                    names=self.attention_names,
                    qkv_bias=is_set(config, self.qkv_bias),
                    out_bias=is_set(config, self.out_bias),
                ),
                *self._qk_norm(heads),
                *feed_forward,
                *blocks.norms(self.norms, heads.hidden, bias=self.norm_bias),
            ),
        )

    def _qk_norm(self, heads: Heads) -> tuple[Tensor, ...]:
        if self.qk_norm == "none":
            return ()
        query, key = (f"{self.attention_prefix}.{name}" for name in ("q_norm", "k_norm"))
        if self.qk_norm == "head":
            return (*blocks.norm(query, heads.key_width), *blocks.norm(key, heads.key_width))
        return (*blocks.norm(query, heads.query_width), *blocks.norm(key, heads.num_kv_heads * heads.key_width))

    def _feed_forward(self, config: Config, hidden: int, routed: bool) -> tuple[tuple[Tensor, ...], Mlp]:
        if not (routed and self.routed):
            intermediate = config.int("intermediate_size")
            bias = is_set(config, self.mlp_bias)
            tensors = blocks.mlp(hidden, intermediate, prefix=self.mlp_prefix, names=self.mlp_names, bias=bias)
            return tensors, Mlp(intermediate=intermediate, gated=len(self.mlp_names) == 3)
        style = self.routed
        num_experts = config.int(*style.num_experts)
        intermediate = config.int(*style.intermediate)
        tensors = (
            *blocks.replicated(style.router, num_experts, hidden, Role.ROUTER, bias=style.router_bias),
            *blocks.experts(hidden, intermediate, num_experts, prefix=style.prefix, names=style.names, bias=style.bias),
            *style.extra(config, hidden),
        )
        return tensors, Mlp(
            intermediate=intermediate,
            gated=len(style.names) == 3,
            num_experts=num_experts,
            experts_per_token=config.int(*style.experts_per_token),
            shared_intermediate=style.shared_intermediate(config),
        )


def build_decoder(config: Config, name: str, *, layers: tuple[Layer, ...], style: Decoder) -> ModelSpec:
    """Return the ModelSpec of a decoder whose layers are made: adds the embedding, the final norm and the head."""
    hidden = config.int("hidden_size", "n_embd", "d_model", "dim")
    vocab = config.int("vocab_size")
    tied = config.bool("tie_word_embeddings", default=style.tied)
    head = () if tied else blocks.lm_head(style.lm_head, vocab, hidden, bias=style.head_bias)
    return ModelSpec(
        name=name,
        model_type=config.str("model_type"),
        architecture=architecture(config),
        dtype=checkpoint_dtype(config),
        hidden_size=hidden,
        vocab_size=vocab,
        num_heads=config.int("num_attention_heads", "n_head", "n_heads", "num_heads"),
        max_context_tokens=max_context_tokens(config),
        layers=layers,
        layer_prefix=style.layer_prefix,
        shared=(
            blocks.embedding(style.embedding, vocab, hidden),
            *blocks.norm(style.final_norm, hidden, bias=style.norm_bias),
            *head,
        ),
        tied_embeddings=tied,
    )


def layer_caches(config: Config, heads: Heads, num_layers: int, policy: str) -> tuple[Cache, ...]:
    """Return what each layer keeps, by the family's window policy.

    `types` follows the config's `layer_types`; `always` windows every layer when the config names a window; `qwen2`
    windows the layers from `max_window_layers` on, when `use_sliding_window` says so.

    Source: transformers' configuration classes of the families that use each policy.
    """
    full = heads.full()
    window = config.optional_int("sliding_window", minimum=1) if policy != "none" else None
    sliding = SlidingWindow(heads.num_kv_heads, heads.key_width, heads.value_width, window) if window else full
    if policy in ("types", "qwen2") and config.has("layer_types"):
        return tuple(_typed(kind, full, sliding, config, heads) for kind in _layer_types(config, num_layers))
    if policy == "always":
        return (sliding,) * num_layers
    if policy == "qwen2" and config.bool("use_sliding_window", default=False):
        first = config.int("max_window_layers", default=28, minimum=0)
        return tuple(sliding if index >= first else full for index in range(num_layers))
    return (full,) * num_layers


def _layer_types(config: Config, num_layers: int) -> tuple[str, ...]:
    kinds = config.strs("layer_types")
    if len(kinds) < num_layers:
        raise UnsupportedModel(f"config key `layer_types` names {len(kinds)} layers of {num_layers}")
    return kinds[:num_layers]


def _typed(kind: str, full: Cache, sliding: Cache, config: Config, heads: Heads) -> Cache:
    if kind == "full_attention":
        return full
    if kind == "sliding_attention":
        return sliding
    if kind == "chunked_attention":
        chunk = config.int("attention_chunk_size", default=8192)
        return ChunkedLocal(heads.num_kv_heads, heads.key_width, heads.value_width, chunk)
    raise UnsupportedModel(f"config key `layer_types` has a kind that this family does not have: `{kind}`")


def is_set(config: Config, flag: Flag) -> bool:
    """Whether a knob is on: itself, or what the config says under the key it names."""
    return config.bool(flag, default=False) if isinstance(flag, str) else flag


def architecture(config: Config) -> str:
    """The first of the config's `architectures`, or the empty text."""
    names = config.strs("architectures", default=())
    return names[0] if names else ""


def checkpoint_dtype(config: Config) -> DType:
    """The type that the checkpoint is stored in; float32 when the config is silent, as in transformers."""
    name = config.str("torch_dtype", "dtype", default="float32")
    return parse_compute_dtype(name) or DType.F32


def max_context_tokens(config: Config) -> int:
    """The longest sequence that the config claims, under the names that families use; 2,048 when it is silent."""
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx")
    return config.int(*keys, default=2048)


LLAMA = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
MISTRAL = Decoder(window="always")
QWEN2 = Decoder(qkv_bias=True, window="qwen2")
QWEN3 = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", window="qwen2")
MIXTRAL = Decoder(
    window="always",
    routed=Routed(prefix="block_sparse_moe.experts.*", names=("w1", "w3", "w2"), router="block_sparse_moe.gate"),
)


def _qwen_routed(config: Config, index: int) -> bool:
    step = config.int("decoder_sparse_step", default=1)
    dense = config.ints("mlp_only_layers", default=())
    return index not in dense and (index + 1) % step == 0


QWEN3_MOE = Decoder(
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    qk_norm="head",
    window="qwen2",
    routed=Routed(is_routed=_qwen_routed),
)
