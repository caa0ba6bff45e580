"""FP8 products: which copies of inputs, weights and gradients are made in 8 bits, how, and what of them is kept.

torchao (`tensorwise`, `rowwise`) keeps what the plain product keeps, input and weight in 16 bits, and casts both again
in the backward pass. Without a compiler a cast goes through two FP32 copies: 9 B an element while it runs. With one it
is a kernel that writes the 8 bits. With `tensorwise-gather` FSDP2 gathers weights that are cast already.
Transformer Engine (`delayed`) keeps the input in 8 bits as the backward pass reads it, and the weight in 8 bits as both
passes read it: a copy and its transpose. A history of largest values, 1,024 for each of five tensors, is small.

Sources: torchao 0.7 to 0.17, float8/float8_linear.py, float8_training_tensor.py, float8_utils.py (to_fp8_saturated),
float8_ops.py (preprocess_addmm, addmm_float8_unwrapped) and fsdp_utils.py; Transformer Engine 2.0 to 2.8,
pytorch/module/linear.py (update_usage, save_for_backward) and common/recipe (amax_history_len).
Not modelled: experts in one product, which both leave in 16 bits unless they are told otherwise; FP8 attention.
"""

from __future__ import annotations

from memplan.budget.training.autograd import GRADIENTS, WORKSPACE, Graph, Parameter, Tensor
from memplan.budget.training.device import Block, Device
from memplan.domain.training import Float8Recipe, TrainingSpec
from memplan.records import dataclass

_FLOAT = 4
_WIDE = ("norm", ".bias", ".experts.", ".gate", ".router", "conv")  # what is gathered in 16 bits all the same
HISTORY_BYTES = 5 * 1024 * _FLOAT  # of input, weight and output, and of two gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class Float8:
    """How a layer's products run in 8 bits. is_compiled: casts are kernels of their own; joins: products of one input
    are one, as Megatron's, and keep it once; weight_width: bytes of an element of the weight that is cast.
    """

    recipe: Float8Recipe
    is_compiled: bool = False
    joins: bool = False
    weight_width: int = 2

    @property
    def weight_is_cast(self) -> bool:
        """Whether the weight comes in 8 bits."""
        return self.recipe == "tensorwise-gather"


def is_gathered_cast(training: TrainingSpec, name: str) -> bool:
    """Whether FSDP2 gathers a layer's weight of this name in 8 bits."""
    if training.float8 != "tensorwise-gather" or training.sharding != "fsdp2":
        return False
    return not any(each in name and not name.endswith("gate_proj") for each in _WIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One product: `rows` of `inputs` times a weight of (outputs, inputs), `width` bytes an element."""

    name: str
    rows: float
    inputs: int
    outputs: int
    width: int
    weight: Parameter
    bias: Parameter | None
    float8: Float8
    is_stashed: bool = False

    @property
    def weight_elements(self) -> float:
        return float(self.outputs * self.inputs)


def multiply(graph: Graph, product: Product, entering: Tensor) -> Tensor:
    """Run it. The caller keeps what enters."""
    return (_delayed if product.float8.recipe == "delayed" else _dynamic)(graph, product, entering)


def _dynamic(graph: Graph, product: Product, entering: Tensor) -> Tensor:
    """torchao: everything is cast when it is multiplied."""
    device, float8 = graph.device, product.float8
    read = product.rows * product.inputs
    copies = [_cast(device, read, product.width, float8)]
    if not float8.weight_is_cast:
        copies.append(_cast(device, product.weight_elements, float8.weight_width, float8))
    made = _output(graph, product, entering, keeps=(entering,) if product.weight.is_trained else ())
    for each in copies:
        device.free(each)
    if made.node is not None:
        made.node.run = lambda grad: _backward(graph, product, entering)
    return made


def _output(
    graph: Graph, product: Product, entering: Tensor, *, keeps: tuple[Tensor, ...], kept: tuple[float, ...] = ()
) -> Tensor:
    return graph.op(
        product.name,
        product.rows * product.outputs * product.width,
        (entering,),
        keeps=keeps,
        keeps_bytes=kept,
        parameters=[product.weight, *([product.bias] if product.bias else [])],
        is_stashed=product.is_stashed,
    )


def _backward(graph: Graph, product: Product, entering: Tensor) -> None:
    """The input's gradient, then the weight's; what is cast for the first is held until both are there.

    A product reads its left side by rows and its right side by columns; what lies otherwise is copied.
    """
    device, float8, width = graph.device, product.float8, product.width
    grad, read = product.rows * product.outputs, product.rows * product.inputs
    held = [_cast(device, grad, width, float8)]
    if not float8.weight_is_cast:
        held.append(_cast(device, product.weight_elements, float8.weight_width, float8))
    turned = device.take(product.weight_elements, WORKSPACE, "FP8 copies")
    first = None
    if entering.needs_grad:
        name = f"gradient of {product.name}"
        first = _product(device, float8, read * width, read, "activations", name)
    device.free(turned)
    second = None
    if product.weight.is_trained:
        held += [_cast(device, grad, width, float8), _cast(device, read, width, float8)]
        copies = [device.take(size, WORKSPACE, "FP8 copies") for size in (grad, read)]
        elements, name = product.weight_elements, product.weight.name
        second = _product(device, float8, product.weight.grad_bytes, elements, GRADIENTS, name)
        for each in copies:
            device.free(each)
    for each in held:
        device.free(each)
    _hand_on(graph, product, entering, first, second)


def _hand_on(graph: Graph, product: Product, entering: Tensor, first: Block | None, second: Block | None) -> None:
    if first is not None:
        graph.pass_on(entering, first)
    if second is not None:
        graph.gradient_of(product.weight, second)
    if product.bias is not None and product.bias.is_trained:
        bias = graph.device.take(product.bias.grad_bytes, GRADIENTS, product.bias.name)
        graph.gradient_of(product.bias, bias)


def _product(device: Device, float8: Float8, size_bytes: float, elements: float, category: str, name: str) -> Block:
    """What a product of the backward pass makes; scales of rows and columns make a matrix that it is multiplied by."""
    scales = None
    if float8.recipe == "rowwise" and not float8.is_compiled:
        scales = device.take(elements * _FLOAT, WORKSPACE, "FP8 scales")
    made = device.take(size_bytes, category, name)
    if scales is not None:
        device.free(scales)
    return made


def _cast(device: Device, elements: float, width: int, float8: Float8) -> Block:
    """So many elements in 8 bits. Without a compiler: their absolute values, for the largest of them; then in FP32,
    scaled, and cut off at the largest number that there is.
    """
    if not float8.is_compiled:
        device.free(device.take(elements * width, WORKSPACE, "FP8 casts"))
        wide = device.take(elements * _FLOAT, WORKSPACE, "FP8 casts") if width != _FLOAT else None
        scaled = device.take(elements * _FLOAT, WORKSPACE, "FP8 casts")
        if wide is not None:
            device.free(wide)
        cut = device.take(elements * _FLOAT, WORKSPACE, "FP8 casts")
        made = device.take(elements, WORKSPACE, "FP8 copies")
        device.free(cut)
        device.free(scaled)
        return made
    return device.take(elements, WORKSPACE, "FP8 copies")


def _delayed(graph: Graph, product: Product, entering: Tensor) -> Tensor:
    """Transformer Engine: one kernel casts and transposes; scales are known from the steps before."""
    device = graph.device
    read, weight = product.rows * product.inputs, product.weight_elements
    by_rows = device.take(read, WORKSPACE, "FP8 copies")
    is_known = product.float8.joins and graph.cast_input is entering.block
    graph.cast_input = entering.block
    kept = (*((read,) if product.weight.is_trained and not is_known else ()), weight, weight)
    made = _output(graph, product, entering, keeps=(), kept=kept)
    if made.node is None:
        device.free(device.take(weight, WORKSPACE, "FP8 copies"))
    device.free(by_rows)
    if made.node is not None:
        made.node.backward_temporaries = (product.rows * product.outputs,) * 2
    return made
