"""Ordinary decoders: softmax attention and an MLP or routed experts in every layer, told apart by a line of knobs.

`dense` and `moe` hold those lines. A family whose layers hold something else (latent attention, recurrent mixers) gives
`mixers` or `feeds` of its own, in a file of its own, and takes everything else from here.

Checked by: the parameter counts of every catalogue model, and transformers' own modules on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memplan.domain.attention import Cache
from memplan.domain.dtypes import DType, parse_compute_dtype
from memplan.domain.model import Layer, Mlp, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel, UsageError
from memplan.introspect import blocks, windows
from memplan.introspect.blocks import Heads
from memplan.introspect.config import Config
from memplan.introspect.stack import (
    Feed,
    Feeds,
    Flag,
    Mixer,
    Mixers,
    Tensors,
    Width,
    is_set,
    key,
    none,
    nothing,
    per_layer,
    stack_layers,
)
from memplan.records import dataclass, field, replace

_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "model_max_length",
    "n_ctx",
    "context_length",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What stands outside a decoder's layers, and how a family names it. An empty name: there is no such part.

    `width` is the embedding's, where it is not the hidden size. `extra` are tensors beside the embedding (learned
    positions, a norm of the embedding), `mtp` the layers that predict further tokens. `tied` is the family's default
    for the first of `tied_keys` that is there.
    """

    layers: str = "model.layers."
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"
    norm_bias: bool = False
    head_bias: Flag = False
    vocab: Width = field(default=key("vocab_size"))
    width: Width = field(default=key(*blocks.HIDDEN))
    tied: bool = False
    tied_keys: tuple[str, ...] = ("tie_word_embeddings",)
    extra: Tensors = nothing
    mtp: Tensors = nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """How a family names its routed experts, and which of its layers have them.

    Two `names` and a `gated` expert: gate and up are stored as one matrix. An empty `suffix`: all experts of a layer
    are stored as one tensor. `correction` is a bias that corrects the router's choice: a buffer, or with
    `correction_counts` a parameter. `shared` is the width of what every token goes through beside them, 0 for none.
    """

    num_experts: tuple[str, ...] = ("num_experts", "num_local_experts", "n_routed_experts")
    experts_per_token: tuple[str, ...] = ("num_experts_per_tok",)
    intermediate: Width = field(default=key("moe_intermediate_size"))
    prefix: str = "mlp.experts.*"
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    suffix: str = ".weight"
    gated: bool = True
    bias: Flag = False
    router: str = "mlp.gate"
    router_bias: bool = False
    router_dtype: DType | None = None
    correction: str = ""
    correction_counts: bool = False
    is_routed: Callable[[Config, int], bool] = field(default=lambda config, index: True)
    shared: Width = none
    shared_prefix: str = "mlp.shared_experts"
    shared_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    shared_bias: Flag = False
    shared_gate: str = ""

    def feed(self, config: Config) -> Feed:
        """The experts of one layer, their router, and the shared experts beside them."""
        hidden, num_experts = config.int(*blocks.HIDDEN), config.int(*self.num_experts)
        intermediate, shared = self.intermediate(config), self.shared(config)
        fused = self.gated and len(self.names) == 2
        tensors = [
            *_retyped(
                blocks.replicated(self.router, num_experts, hidden, Role.ROUTER, bias=self.router_bias),
                self.router_dtype,
            ),
            *blocks.experts(
                hidden,
                intermediate,
                num_experts,
                prefix=self.prefix,
                names=self.names,
                bias=is_set(config, self.bias),
                fused=fused,
                suffix=self.suffix,
            ),
        ]
        if self.correction:
            tensors.append(correction_bias(self.correction, num_experts, is_buffer=not self.correction_counts))
        if shared:
            role = Role.SHARED_EXPERT
            fused = self.gated and len(self.shared_names) == 2
            tensors += blocks.mlp(
                hidden,
                shared,
                prefix=self.shared_prefix,
                names=self.shared_names,
                bias=is_set(config, self.shared_bias),
                role=role,
                fused=fused,
            )
            if self.shared_gate:
                tensors += blocks.replicated(self.shared_gate, 1, hidden, role)
        return Feed(
            tensors=tuple(tensors),
            mlp=Mlp(
                intermediate=intermediate,
                gated=self.gated,
                num_experts=num_experts,
                experts_per_token=config.int(*self.experts_per_token),
                shared_intermediate=shared,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The knobs of an ordinary decoder family. Calling it builds the ModelSpec.

    Two `attention_names`: query, key and value are stored as one matrix; two `mlp_names` of a `gated` MLP: gate and up
    are. `mixers` and `feeds` take the place of what the knobs would make.
    """

    heads: Callable[[Config], Heads] = blocks.read_heads
    qkv_bias: Flag = False
    out_bias: Flag = False
    attention_prefix: str = "self_attn"
    attention_names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    qk_norm: Flag = False
    qk_norm_names: tuple[str, str] = ("q_norm", "k_norm")
    qk_norm_full: bool = False  # a norm over the whole projection, not over each head
    qk_norm_bias: bool = False
    attention_extra: Callable[[Config, Heads], tuple[Tensor, ...]] = field(default=lambda config, heads: ())
    window: windows.Window = windows.full
    mixers: Mixers | None = None
    mlp_prefix: str = "mlp"
    mlp_names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    mlp_bias: Flag = False
    gated: bool = True
    intermediate: Width = field(default=key("intermediate_size"))
    routed: Routed | None = None
    feeds: Feeds | None = None
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    layer_norms: Tensors | None = None
    frame: Frame = field(default=Frame())

    def __call__(self, config: Config, name: str) -> ModelSpec:
        layers = stack_layers(self.make_mixers(config), self.make_feeds(config), self.make_norms(config))
        return build_decoder(config, name, layers=layers, frame=self.frame)

    def make_mixers(self, config: Config) -> Sequence[Mixer]:
        """The attention of every layer."""
        if self.mixers:
            return self.mixers(config)
        heads = self.heads(config)
        caches = self.window(config, heads, config.num_layers())
        return per_layer(caches, lambda cache: self.attention(config, heads, cache))

    def make_feeds(self, config: Config) -> Sequence[Feed]:
        """The MLP or the experts of every layer."""
        if self.feeds:
            return self.feeds(config)
        routed = self.routed
        num_layers = config.num_layers()
        if routed is None:
            return (self.dense_feed(config),) * num_layers
        flags = [routed.is_routed(config, index) for index in range(num_layers)]
        return per_layer(flags, lambda flag: routed.feed(config) if flag else self.dense_feed(config))

    def make_norms(self, config: Config) -> tuple[Tensor, ...]:
        """The norms that stand in every layer."""
        if self.layer_norms:
            return self.layer_norms(config)
        return blocks.norms(self.norms, config.int(*blocks.HIDDEN), bias=self.frame.norm_bias)

    def attention(self, config: Config, heads: Heads, *caches: Cache) -> Mixer:
        """The softmax attention of one layer."""
        tensors = (
            *blocks.attention(
                heads,
                prefix=self.attention_prefix,
                names=self.attention_names,
                qkv_bias=is_set(config, self.qkv_bias),
                out_bias=is_set(config, self.out_bias),
            ),
            *(self._qk_norm(heads) if is_set(config, self.qk_norm) else ()),
            *self.attention_extra(config, heads),
        )
        return Mixer(tensors=tensors, caches=caches, query_width=heads.query_width, num_heads=heads.num_heads)

    def dense_feed(self, config: Config) -> Feed:
        """The MLP of one layer."""
        intermediate = self.intermediate(config)
        tensors = blocks.mlp(
            config.int(*blocks.HIDDEN),
            intermediate,
            prefix=self.mlp_prefix,
            names=self.mlp_names,
            bias=is_set(config, self.mlp_bias),
            fused=self.gated and len(self.mlp_names) == 2,
        )
        return Feed(tensors=tensors, mlp=Mlp(intermediate=intermediate, gated=self.gated))

    def _qk_norm(self, heads: Heads) -> tuple[Tensor, ...]:
        query, key_name = (f"{self.attention_prefix}.{name}" for name in self.qk_norm_names)
        query_width, key_width = heads.key_width, heads.key_width
        if self.qk_norm_full:
            query_width, key_width = heads.query_width, heads.num_kv_heads * heads.key_width
        bias = self.qk_norm_bias
        return (*blocks.norm(query, query_width, bias=bias), *blocks.norm(key_name, key_width, bias=bias))


def shape(*, kv: int | None = None, dim: int | None = None) -> Callable[[Config], Heads]:
    """A reader of the attention's shape with a class's defaults: its key-value heads, and the width of a head."""
    return lambda config: blocks.read_heads(config, default_kv=kv, head_dim=dim)


def build_decoder(config: Config, name: str, *, layers: tuple[Layer, ...], frame: Frame) -> ModelSpec:
    """Return the ModelSpec of a decoder whose layers are made: adds the embedding, the final norm and the head."""
    hidden = config.int(*blocks.HIDDEN)
    vocab, width = frame.vocab(config), frame.width(config)
    class_name = architecture(config)
    tied = config.bool(*frame.tied_keys, default=frame.tied)
    head = _task_head(config, class_name, width)
    if head is None:
        head = () if tied else blocks.lm_head(frame.lm_head, vocab, width)
        head += _head_bias(config, frame, vocab)
    return ModelSpec(
        name=name,
        model_type=config.str("model_type"),
        architecture=class_name,
        dtype=checkpoint_dtype(config),
        hidden_size=hidden,
        vocab_size=vocab,
        num_heads=config.int(*blocks.HEADS, default=1),
        max_context_tokens=max_context_tokens(config),
        layers=layers,
        layer_prefix=frame.layers,
        shared=(
            blocks.embedding(frame.embedding, vocab, width),
            *frame.extra(config),
            *(blocks.norm(frame.final_norm, hidden, bias=frame.norm_bias) if frame.final_norm else ()),
            *head,
        ),
        mtp=frame.mtp(config),
        tied_embeddings=tied,
        is_generative=_is_generative(class_name),
    )


def _is_generative(class_name: str) -> bool:
    """Whether a class has a vocabulary projection: all but bare models and those with another head."""
    if class_name.endswith("LMHeadModel") or class_name == "ChatGLMModel":
        return True
    return not class_name.endswith(
        ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    )


def _task_head(config: Config, class_name: str, hidden: int) -> tuple[Tensor, ...] | None:
    """The head of a model that writes no text; None for one that does.

    Source: transformers' generic classification heads; the published reward models of Qwen2 and InternLM2.
    """
    if _is_generative(class_name):
        return None
    if class_name.endswith("ForQuestionAnswering"):
        return blocks.replicated("qa_outputs", 2, hidden, Role.LM_HEAD, bias=True)
    if class_name.endswith(("ForSequenceClassification", "ForTokenClassification")):
        has_bias = class_name.endswith("ForTokenClassification")
        return blocks.replicated("score", num_labels(config), hidden, Role.LM_HEAD, bias=has_bias)
    if class_name.startswith("Qwen2") and class_name.endswith("RewardModel"):
        labels = num_labels(config) if "Process" in class_name else 1
        return (
            *blocks.replicated("score.0", hidden, hidden, Role.LM_HEAD, bias=True),
            *blocks.replicated("score.2", labels, hidden, Role.LM_HEAD, bias=True),
        )
    if class_name.endswith("RewardModel"):
        name, has_bias = _REWARD_HEADS.get(class_name, ("score", False))
        return blocks.replicated(name, 1, hidden, Role.LM_HEAD, bias=has_bias)
    return ()


_REWARD_HEADS = {"InternLM2ForRewardModel": ("v_head", False), "GPTNeoXRewardModel": ("out_proj", True)}


def _head_bias(config: Config, frame: Frame, vocab: int) -> tuple[Tensor, ...]:
    """The bias of the vocabulary projection, which is there even where the projection itself is tied."""
    return blocks.lm_head(frame.lm_head, vocab, 1, bias=True)[1:] if is_set(config, frame.head_bias) else ()


def num_labels(config: Config) -> int:
    """How many labels a classification head tells apart: 2 when the config is silent, as in transformers."""
    labels = config.get("id2label")
    if isinstance(labels, dict) and 0 < len(labels) < 1 << 20:
        return len(labels)
    return config.int("num_labels", "_num_labels", default=2)


def correction_bias(name: str, num_experts: int, *, is_buffer: bool = True) -> Tensor:
    """The bias that balances a router's choice of experts, kept in FP32."""
    return blocks.vector(name, num_experts, Role.ROUTER, dtype=DType.F32, is_buffer=is_buffer)


def architecture(config: Config) -> str:
    """The first of the config's `architectures`, or the empty text."""
    names = config.strs("architectures", default=())
    return names[0] if names else ""


def checkpoint_dtype(config: Config) -> DType:
    """The type that the checkpoint is stored in; float32 when the config is silent, as in transformers.

    Raises: UnsupportedModel when it is no type that a model computes in.
    """
    name = config.str("torch_dtype", "dtype", default="float32")
    try:
        return parse_compute_dtype(name) or DType.F32
    except UsageError:
        raise UnsupportedModel(f"config key `torch_dtype` is no compute type: `{name[:40]}`") from None


def max_context_tokens(config: Config) -> int:
    """The longest sequence that the config claims, under the names that families use; 2,048 when it is silent."""
    return config.int(*_CONTEXT, default=2048)


def _retyped(tensors: tuple[Tensor, ...], dtype: DType | None) -> tuple[Tensor, ...]:
    if dtype is None:
        return tensors
    return tuple(replace(tensor, dtype=dtype) for tensor in tensors)
