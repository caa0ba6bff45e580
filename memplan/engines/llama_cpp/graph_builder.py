"""What every part of the graph shares: a layer's weights as graph values, inputs made on first use, small blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memplan.domain.model import Layer
from memplan.domain.tensors import Tensor
from memplan.engines.llama_cpp.ggml_graph import Graph, Value, leaf_input, like, matmul, weight
from memplan.engines.llama_cpp.graph_traits import Traits
from memplan.errors import UnsupportedModel
from memplan.records import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRules:
    """What changed between releases in the graph.

    `fused_glu`: gate and up become one operation with a result of its own, instead of working in place. `set_rows`:
    the cache is written by row numbers, which are inputs. `half_mask`: with flash attention the mask is made in FP16
    instead of being cast on every device. `mask_multiple` pads the mask's tokens. `early_routing`: routing weights are
    put into the graph as soon as they are made; `early_experts`: so are the experts' results. `latent`: latent
    attention is cached compressed. `values_before_keys`: values are computed before keys. `values_in_keys`: a latent
    is cached once, as part of the keys. `rotates_tail`: rotary positions work on the last part of a head in place of a
    head cut in two. `copies_parts`: parts of a latent are copied before they are normed or rotated. `copies_fused`:
    queries, keys and values of a fused projection are copied apart. `embeds_either`: an input for ready embeddings is
    always part of the graph. `selects_rows`: the last layer goes on with the rows that are asked for.
    `factors_per_layer`: every layer has rotary factors of its own. `fused_norms`: a norm and its
    weight are one operation, which does not work in place (the ik fork).
    """

    fused_glu: bool = True
    set_rows: bool = True
    half_mask: bool = True
    mask_multiple: int = 1
    early_routing: bool = True
    early_experts: bool = True
    latent: bool = True
    values_before_keys: bool = True
    values_in_keys: bool = True
    rotates_tail: bool = True
    copies_parts: bool = False
    copies_fused: bool = False
    embeds_either: bool = True
    selects_rows: bool = True
    factors_per_layer: bool = False
    fused_norms: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The worst case that is reserved: tokens of one step, rows of logits, and the cells they attend to."""

    tokens: int
    outputs: int
    sequences: int
    cells: int
    window_cells: int
    streams: int
    flash: bool
    key_type: str
    value_type: str

    @property
    def window_differs(self) -> bool:
        return self.window_cells > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Devices of one context, by number: of each layer, its cache and single weights; of the output layer and of the
    head's matrix. The CPU is the last. `divided`: weights of a layer may lie apart from it.
    """

    layers: tuple[int, ...]
    caches: tuple[int, ...]
    output: int
    cpu: int
    weight_device: Callable[[int, str], int]
    divided: bool
    head: int
    forces_norms: bool = False
    attends_on_cpu: bool = False


@dataclass(slots=True)
class Builder:
    """A graph under construction, with what its parts ask for."""

    traits: Traits
    rules: GraphRules
    batch: Batch
    placement: Placement
    shared: Mapping[str, Tensor] = field(default_factory=dict)
    graph: Graph = field(default_factory=Graph)
    inputs: dict[str, Value] = field(default_factory=dict)
    _weights: dict[tuple[int, int, str], Value] = field(default_factory=dict)

    def input(self, name: str, kind: str, *shape: int) -> Value:
        """The graph input of that name, made on first use."""
        if name not in self.inputs:
            self.inputs[name] = leaf_input(name, kind, *shape)
        return self.inputs[name]

    def cells_of(self, *, has_window: bool) -> tuple[str, int]:
        """Which cache a layer reads: its name, and the cells of one stream."""
        if has_window and self.batch.window_differs:
            return "window", self.batch.window_cells
        return "full", self.batch.cells

    def weights(self, layer: Layer, index: int) -> LayerWeights:
        """The weights of layer `index`."""
        return LayerWeights(self, index, {tensor.name: tensor for tensor in layer.tensors})

    def make_weight(self, tensor: Tensor, device: int, index: int) -> Value:
        """A weight as a graph value, the same one for the same tensor."""
        key = index, device, tensor.name
        if key not in self._weights:
            shape = tuple(reversed(tensor.shape))
            if tensor.count > 1:
                shape = (*shape, 1, 1)[: max(2, len(shape))]
                shape = (*shape, tensor.count) if len(tensor.shape) > 1 else (shape[0], tensor.count)
            self._weights[key] = weight(tensor.name, ggml_type(tensor), device, *shape)
        return self._weights[key]

    def norm(self, value: Value, scale: Value | None, bias: Value | None, layer: int | None, *, op: str = "") -> Value:
        """A norm, its weight and its bias."""
        kind = op or self.traits.norm
        if self.rules.fused_norms and kind == "rms_norm" and scale is not None and bias is None:
            return like("fused_rms_norm", value, scale, name="norm")
        made = like(kind, value, name="norm")
        if layer is not None and self.placement.forces_norms and (scale is not None or bias is not None):
            made.backend = self.placement.layers[layer]
        if scale is not None:
            made = like("mul", made, scale, name="norm_w")
        if bias is not None:
            made = like("add", made, bias, name="norm_b")
        return made

    def linear(self, value: Value, matrix: Value, bias: Value | None = None) -> Value:
        """A product with a weight, and its bias."""
        made = matmul(matrix, value, name=matrix.name)
        return like("add", made, bias) if bias is not None else made


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer by ggml's names; None for one that the layer does not have."""

    builder: Builder
    index: int
    tensors: Mapping[str, Tensor]

    def __contains__(self, name: str) -> bool:
        return f"{name}.weight" in self.tensors

    def get(self, name: str, suffix: str = "weight") -> Value | None:
        tensor = self.tensors.get(f"{name}.{suffix}")
        if tensor is None:
            return None
        device = self.builder.placement.weight_device(self.index, tensor.name)
        return self.builder.make_weight(tensor, device, self.index)

    def __getitem__(self, name: str) -> Value:
        value = self.get(name)
        if value is None:
            raise missing_weight(self.index, name)
        return value

    def rope_factors(self) -> Value | None:
        """The factors of the rotary positions: Llama 3.1's, or Phi-3's for long contexts."""
        for name in ("rope_freqs.weight", "rope_factors_long.weight"):
            tensor = self.builder.shared.get(name) or self.tensors.get(name)
            if tensor is not None:
                owner = self.index if self.builder.rules.factors_per_layer else -3
                return self.builder.make_weight(tensor, self.builder.placement.layers[self.index], owner)
        return None

    def bias(self, name: str) -> Value | None:
        return self.get(name, "bias")

    def norm(self, value: Value, name: str) -> Value:
        """The norm of that name, or the value as it is where the layer has no such norm."""
        if name not in self:
            return value
        return self.builder.norm(value, self[name], self.bias(name), self.index)

    def linear(self, value: Value, name: str) -> Value:
        """The product with the weight of that name, and its bias."""
        return self.builder.linear(value, self[name], self.bias(name))


def missing_weight(index: int, name: str) -> UnsupportedModel:
    """The refusal of a layer that lacks a weight which its architecture computes with."""
    return UnsupportedModel(
        f"layer {index} has no `{name}`, which llama.cpp computes with",
        hint="is the file whole, and of this architecture?",
    )


def ggml_type(tensor: Tensor) -> str:
    """ggml's name of a tensor's type; FP16 where none was chosen."""
    if tensor.storage is not None and tensor.storage.scheme.startswith("gguf:"):
        return tensor.storage.scheme.removeprefix("gguf:")
    names = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
    return names.get(tensor.dtype.value if tensor.dtype else "", "f16")
