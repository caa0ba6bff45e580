"""A linear layer in a training step: trained, frozen, stored in 4 bits, or with a low-rank adapter beside it.

What passes through has `tokens` rows. Bytes of an element of what is computed: `width`.

Sources: torch.nn.functional.linear's backward (the input's gradient, then the weight's); PEFT 0.13 to 0.17,
tuners/lora/layer.py and bnb.py (adapters in FP32 unless autocast is on; the base's output is cloned in 4 bit layers);
bitsandbytes 0.43 to 0.48, autograd/_functions.py, MatMul4Bit (the weight is dequantized for each product, both ways).
"""

from __future__ import annotations

from memplan.budget.training.autograd import Graph, Parameter, Tensor
from memplan.budget.training.float8 import Float8, Product, multiply
from memplan.budget.training.kernels import softcapped
from memplan.records import dataclass

_HALF, _FLOAT = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The low-rank product beside a layer: A from the input to `rank`, B from there to the output.

    `casts` says that the input is cast up to the adapters' FP32 (no autocast); `clones` that the layer's own output is
    copied first. `is_fused` is the kernel that computes layer and adapter together and keeps only the input.
    `magnitude` is DoRA's: one factor for every output, over the norm of the merged weight.
    """

    rank: int
    down: Parameter
    up: Parameter
    casts: bool = True
    clones: bool = False
    is_fused: bool = False
    dropout: bool = False
    magnitude: Parameter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One matrix of shape (outputs, inputs).

    `unpacked_bytes` is what the weight takes while it is multiplied, where it is stored in another form; `cast_bytes`
    what a copy in the computed type takes that is kept for the backward pass (autocast). `is_last`: its output is the
    layer's own, so that a compiler that keeps what is needed does not keep it. `is_grouped`: it is one of several
    experts' matrices, which selective checkpointing computes again. `is_softcapped`: its output goes through a tanh.
    `float8`: it is multiplied in 8 bits. `is_narrowed`: it multiplies in 16 bits and returns the type that it is given.
    """

    name: str
    inputs: int
    outputs: int
    weight: Parameter
    bias: Parameter | None = None
    unpacked_bytes: float = 0
    cast_bytes: float = 0
    adapter: Adapter | None = None
    is_last: bool = False
    is_grouped: bool = False
    is_softcapped: bool = False
    float8: Float8 | None = None
    is_narrowed: bool = False

    def run(self, graph: Graph, entering: Tensor, tokens: float, width: int) -> Tensor:
        """Multiply. The caller keeps what enters."""
        made = self._multiply(graph, entering, tokens, width)
        if self.is_softcapped:
            made = softcapped(graph, made)
        if self.adapter is None:
            return made
        if self.adapter.is_fused:
            return made
        return _with_adapter(graph, self, self.adapter, entering, made, tokens, width)

    def _multiply(self, graph: Graph, entering: Tensor, tokens: float, width: int) -> Tensor:
        adapter = self.adapter
        keeps_input = self.weight.is_trained or (adapter is not None and adapter.is_fused)
        parameters = [self.weight, *([self.bias] if self.bias else [])]
        if adapter is not None and adapter.is_fused:
            parameters += [adapter.down, adapter.up]
        unpacked = [self.unpacked_bytes] if self.unpacked_bytes else []
        if self.is_narrowed and width == _FLOAT:
            unpacked += [tokens * self.inputs * _HALF, tokens * self.outputs * _HALF]
        graph.num_products += not self.is_grouped
        is_stashed = graph.num_products % 2 == 1 and not (self.is_last or self.is_grouped)
        if self.float8 is not None:
            product = Product(
                name=self.name,
                rows=tokens,
                inputs=self.inputs,
                outputs=self.outputs,
                width=width,
                weight=self.weight,
                bias=self.bias,
                float8=self.float8,
                is_stashed=is_stashed,
            )
            return multiply(graph, product, entering)
        return graph.op(
            self.name,
            tokens * self.outputs * width,
            (entering,),
            keeps=(entering,) if keeps_input else (),
            keeps_bytes=(self.cast_bytes,) if self.cast_bytes else (),
            temporaries=unpacked,
            backward_temporaries=unpacked,
            parameters=parameters,
            is_stashed=is_stashed,
        )


def _with_adapter(
    graph: Graph, layer: Linear, adapter: Adapter, entering: Tensor, base: Tensor, tokens: float, width: int
) -> Tensor:
    """The adapter's product, scaled and added to the layer's own."""
    if adapter.clones:
        copied = graph.op("clone", base.size_bytes, (base,), grads=(None,))
        graph.drop(base)
        base = copied
    inner = _FLOAT if adapter.casts else _HALF if layer.is_narrowed else width
    reads = entering
    if inner != width:
        reads = graph.op("adapter's cast", tokens * layer.inputs * inner, (entering,))
    if adapter.dropout:
        dropped = graph.op(
            "adapter's dropout", tokens * layer.inputs * inner, (reads,), keeps_bytes=(tokens * layer.inputs,)
        )
        if reads is not entering:
            graph.drop(reads)
        reads = dropped
    narrow = graph.op("adapter A", tokens * adapter.rank * inner, (reads,), keeps=(reads,), parameters=(adapter.down,))
    wide = graph.op("adapter B", tokens * layer.outputs * inner, (narrow,), keeps=(narrow,), parameters=(adapter.up,))
    graph.drop(narrow)
    scaled = graph.op("adapter's scale", wide.size_bytes, (wide,))
    graph.drop(wide)
    if adapter.magnitude is not None:
        base, scaled = _scaled_by_magnitude(graph, layer, adapter.magnitude, base, scaled, inner)
    summed = graph.op(
        "adapter's sum",
        max(scaled.size_bytes, base.size_bytes),
        (base, scaled),
        grads=(None if inner <= width else base.size_bytes, None if inner >= width else scaled.size_bytes),
    )
    graph.drop(base, scaled)
    if reads is not entering:
        graph.drop(reads)
    if inner <= width:
        return summed
    made = graph.op("adapter's cast back", tokens * layer.outputs * width, (summed,))
    graph.drop(summed)
    return made


def _scaled_by_magnitude(
    graph: Graph, layer: Linear, magnitude: Parameter, base: Tensor, product: Tensor, inner: int
) -> tuple[Tensor, Tensor]:
    """DoRA: both sides times the magnitude over the norm. Takes over both.

    The norm is of the whole merged weight, which is made for it: the adapters' product, the weight in their type, and
    the sum of both. Source: PEFT 0.13 to 0.17, tuners/lora/dora.py, DoraLinearLayer.forward.
    """
    matrix = float(layer.outputs * layer.inputs * inner)
    factor = graph.op(
        "DoRA's magnitude", layer.outputs * inner, (), temporaries=(matrix,) * 3, parameters=(magnitude,), grads=()
    )
    grown = graph.op("DoRA's base", product.size_bytes, (base, factor), keeps=(base, factor))
    turned = graph.op("DoRA's adapter", product.size_bytes, (product, factor), keeps=(product, factor))
    graph.drop(base, product, factor)
    return grown, turned
