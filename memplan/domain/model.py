"""ModelSpec: everything the rest of memplan knows about a model. Built by `introspect`, read by everyone else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from memplan.domain.attention import Cache
from memplan.domain.dtypes import DType
from memplan.domain.tensors import Role, Tensor
from memplan.records import dataclass, replace

# What joins the next embedding to the hidden state: one per predictor.
_PREDICTOR_JOINS = ("eh_proj.weight", "fc.weight", "mtp_linear_proj.0.weight", "input_proj.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """The feed-forward half of a layer, as far as the memory of a pass depends on it.

    `intermediate` is the width of a dense MLP, or of one routed expert; `shared_intermediate` the width of what every
    token goes through beside the routed experts (shared experts, or a dense MLP in parallel); 0 where there is none.
    """

    intermediate: int
    gated: bool = True
    num_experts: int = 0
    experts_per_token: int = 0
    shared_intermediate: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One decoder layer. Equal layers are one and the same object, so that a model of 80 layers stays small.

    `caches` is what a sequence leaves behind in it (usually one entry, several where attention runs beside a recurrent
    mixer or an indexer). `query_width` is num_heads x head_dim; 0 for a layer without softmax attention.
    """

    kind: str
    caches: tuple[Cache, ...]
    tensors: tuple[Tensor, ...]
    query_width: int = 0
    num_heads: int = 0
    mlp: Mlp | None = None

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_parameters for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryTable:
    """Cosines and sines that an engine precomputes: `width` values for each of `positions` positions, in the model's
    type. `is_multimodal` marks positions in time, height and width, for which engines make a longer table. `factors`
    names the scaling whose factors GGUF files store as tensors.
    """

    positions: int
    width: int
    is_multimodal: bool = False
    factors: Literal["", "llama3", "longrope"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInput:
    """What the largest single image, video or audio clip costs, as an engine's profiling run sees it.

    `max_tokens` is how many tokens of the language model it becomes, `patches` how many vectors of `hidden_size` the
    tower works on for it. A video grows by `step_tokens` (a frame, or a pair of frames) up to `max_tokens`, as far as
    the context less `reserved_tokens` has room; `step_tokens` 0 means that the context does not bound the input.
    """

    modality: Literal["image", "video", "audio"]
    max_tokens: int
    patches: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    step_tokens: int = 0
    reserved_tokens: int = 0

    def tokens_at(self, context_tokens: int) -> int:
        """How many language-model tokens the largest input becomes when a sequence may be `context_tokens` long."""
        if not self.step_tokens:
            return self.max_tokens
        steps = max((context_tokens - self.reserved_tokens) // self.step_tokens, 1)
        return min(self.max_tokens, steps * self.step_tokens)

    def patches_at(self, context_tokens: int) -> int:
        """How many vectors the tower works on for that input."""
        return self.patches * self.tokens_at(context_tokens) // self.max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """A part that stands beside the decoder: a vision or audio tower, a projector, the encoder of an encoder-decoder.

    `*` in a tensor's name stands for the number of a layer, `count` is how many layers there are. `media` has one
    entry for every modality that the tower reads. `optional` marks a part that engines which write only text do not
    load (a speech generator).
    """

    role: Role
    tensors: tuple[Tensor, ...]
    media: tuple[MediaInput, ...] = ()
    optional: bool = False

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_parameters for tensor in self.tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model, engine-free. Sizes count elements; nothing here is sharded, padded or rounded.

    `shared` holds the tensors outside the layers (embeddings, final norm, head); a tied head has no tensor of its own.
    `mtp` are multi-token-prediction layers: stored in the checkpoint, loaded only for speculative decoding.
    `stored_bytes` is what the checkpoint's headers add up to, where headers were read. `quantization_traits` are the
    properties of a quantized checkpoint that engines refuse or accept it for, beyond how matrices are stored.
    """

    name: str
    model_type: str
    architecture: str
    dtype: DType
    hidden_size: int
    vocab_size: int
    num_heads: int
    max_context_tokens: int
    layers: tuple[Layer, ...]
    shared: tuple[Tensor, ...]
    layer_prefix: str = "model.layers."
    towers: tuple[Tower, ...] = ()
    mtp: tuple[Tensor, ...] = ()
    tied_embeddings: bool = False
    rotary: tuple[RotaryTable, ...] = ()
    quantization: str | None = None
    quantization_traits: tuple[str, ...] = ()
    kv_cache_scheme: str | None = None
    weights_source: Literal["headers", "config"] = "config"
    stored_bytes: int | None = None
    is_generative: bool = True
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def parameters(self) -> int:
        """Parameters, tied tensors once, without multi-token-prediction layers and without quantization scales."""
        return (
            sum(tensor.num_parameters for tensor in self.shared)
            + sum(layer.num_parameters * copies for layer, copies in self.distinct_layers())
            + sum(tower.num_parameters for tower in self.towers)
        )

    @property
    def active_parameters(self) -> int:
        """Parameters that one token goes through: of the routed experts only those it is sent to."""
        idle = 0
        for layer, copies in self.distinct_layers():
            if layer.mlp and layer.mlp.num_experts:
                routed = sum(tensor.num_elements for tensor in layer.tensors if tensor.role is Role.EXPERT)
                idle += copies * (routed - routed * layer.mlp.experts_per_token // layer.mlp.num_experts)
        return self.parameters - idle

    def predictor(self) -> ModelSpec | None:
        """The multi-token-prediction layers as a draft model of their own, or None when there are none.

        They run on the model's embedding and head, and cache like its last attention layer.
        """
        attention = next((layer for layer in reversed(self.layers) if layer.query_width), None)
        if not self.mtp or attention is None:
            return None
        joins = sum(tensor.name.endswith(_PREDICTOR_JOINS) for tensor in self.mtp)
        first = replace(attention, kind="mtp", tensors=self.mtp)
        others = replace(attention, kind="mtp", tensors=())
        layers = (first, *(others for _ in range(max(1, joins) - 1)))
        return replace(self, name=f"{self.name} (mtp)", layers=layers, shared=(), towers=(), mtp=(), rotary=())

    def distinct_layers(self) -> tuple[tuple[Layer, int], ...]:
        """Each layer object once, with how often the model has it, in the order of the first."""
        return count_layers(self.layers)


_counted: dict[int, tuple[tuple[Layer, ...], tuple[tuple[Layer, int], ...]]] = {}
_MOST_COUNTED = 64


def count_layers(layers: tuple[Layer, ...]) -> tuple[tuple[Layer, int], ...]:
    """Each layer object once, with how often it occurs. Models of 80 equal layers are then as quick as one of one.

    A search counts the same layers again and again, so what was counted is kept, beside the layers it is of.
    """
    known = _counted.get(id(layers))
    if known is not None and known[0] is layers:
        return known[1]
    if len(_counted) >= _MOST_COUNTED:
        _counted.clear()
    found = _count(layers)
    _counted[id(layers)] = (layers, found)
    return found


def _count(layers: Iterable[Layer]) -> tuple[tuple[Layer, int], ...]:
    counts: dict[int, int] = {}
    first: dict[int, Layer] = {}
    for layer in layers:
        counts[id(layer)] = counts.get(id(layer), 0) + 1
        first.setdefault(id(layer), layer)
    return tuple((layer, counts[key]) for key, layer in first.items())
