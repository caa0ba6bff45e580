"""The small operators of a layer, each as the code that people run computes it: norms, rotary positions, gated
activations.

`Kernels` says which form of each is used. Bytes of an element of what is computed: `width`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from memplan.budget.training.autograd import Graph, Parameter, Tensor
from memplan.records import dataclass
from memplan.units import round_up

_FLOAT, _INDEX = 4, 8
# Up to so many indices the gradient of an embedding is written without sorting them.
_UNSORTED_INDICES = 3072
_ROWS_PER_SUM = 10
_WARP = 32
_STATISTICS = 2 * _FLOAT  # mean and deviation of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Which form of an operator runs.

    norm: `eager` computes in FP32 step by step and scales what was cast back (Llama's RMSNorm), `eager-wide` scales in
    FP32 (Gemma's), `eager-plain` is LayerNorm over an FP32 copy, without weights (OLMo's), `eager-centred` LayerNorm
    step by step (Cohere's); `layer` is PyTorch's LayerNorm, `fused` one kernel that keeps its input.
    rotary: `eager` rotates halves with slices and concatenation, `fused` in place. joins_rotary: what is rotated is
    joined with what is not; wide_rotary: in FP32.
    gate: `eager` keeps both sides and the activated gate, `fused` both sides alone; `clamped` clamps both and
    multiplies the gate by its own sigmoid.
    activation: one `kernel`, `relu` that keeps its output, `steps` (GELU by its formula with tanh), `own` backward code
    that keeps its input, `xielu` by its formula.
    caches_keys: a KV cache is filled, which copies keys and values.
    """

    norm: Literal["eager", "eager-wide", "eager-plain", "eager-centred", "fused", "layer"] = "eager"
    rotary: Literal["eager", "fused", "none"] = "eager"
    joins_rotary: bool = False
    wide_rotary: bool = False
    gate: Literal["eager", "clamped", "fused"] = "eager"
    activation: Literal["kernel", "relu", "steps", "own", "xielu"] = "kernel"
    softcaps: bool = False
    caches_keys: bool = False


def norm(graph: Graph, entering: Tensor, weight: Parameter, rows: float, width: int, kernels: Kernels) -> Tensor:
    """Normalise every row. The caller keeps what enters."""
    form = kernels.norm
    if form in ("fused", "layer"):
        kept = rows * (_STATISTICS if form == "layer" else _FLOAT)
        return graph.op(
            weight.name, entering.size_bytes, (entering,), keeps=(entering,), keeps_bytes=(kept,), parameters=(weight,)
        )
    wide_bytes = entering.size_bytes / width * _FLOAT
    wide = _widened(graph, entering, width)
    if form == "eager-plain":
        plain = graph.op("norm", wide_bytes, (wide,), keeps=(wide,), keeps_bytes=(rows * _STATISTICS,))
        graph.drop(wide)
        return _narrowed(graph, plain, width)
    scaled = (_centred if form == "eager-centred" else _scaled)(graph, wide, rows)
    graph.drop(wide)
    if form == "eager":
        return _weighted(graph, _narrowed(graph, scaled, width), weight)
    return _narrowed(graph, _weighted(graph, scaled, weight), width)


def _widened(graph: Graph, entering: Tensor, width: int) -> Tensor:
    if width == _FLOAT:
        graph.device.share(entering.block)
        return entering
    return graph.op("norm's cast", entering.size_bytes / width * _FLOAT, (entering,))


def _narrowed(graph: Graph, wide: Tensor, width: int) -> Tensor:
    """Takes over what enters."""
    if width == _FLOAT:
        return wide
    made = graph.op("norm's cast back", wide.size_bytes / _FLOAT * width, (wide,))
    graph.drop(wide)
    return made


def _scaled(graph: Graph, wide: Tensor, rows: float) -> Tensor:
    """Rows over the root of their mean square."""
    size = wide.size_bytes
    squares = graph.op("norm's squares", size, (wide,), keeps=(wide,), backward_temporaries=(size, size))
    roots = graph.op("norm's roots", rows * _FLOAT, (squares,), keeps_output=True, grads=(size,))
    graph.drop(squares)
    made = graph.op("norm's scaling", size, (wide, roots), keeps=(wide, roots), backward_temporaries=(size,))
    graph.drop(roots)
    return made


def _centred(graph: Graph, wide: Tensor, rows: float) -> Tensor:
    """Rows less their mean, over their deviation; the difference is made twice."""
    size = wide.size_bytes
    first = graph.op("norm's difference", size, (wide,), grads=(None,))
    squares = graph.op("norm's squares", size, (first,), keeps=(first,), backward_temporaries=(size, size))
    graph.drop(first)
    roots = graph.op("norm's roots", rows * _FLOAT, (squares,), keeps_output=True, grads=(size,))
    graph.drop(squares)
    second = graph.op("norm's difference", size, (wide,), grads=(None,))
    made = graph.op("norm's scaling", size, (second, roots), keeps=(second, roots), backward_temporaries=(size,))
    graph.drop(second, roots)
    return made


def _weighted(graph: Graph, entering: Tensor, weight: Parameter) -> Tensor:
    """Takes over what enters."""
    size, is_trained = entering.size_bytes, weight.is_trained
    made = graph.op(
        weight.name,
        size,
        (entering,),
        keeps=(entering,) if is_trained else (),
        backward_temporaries=(size,) if is_trained else (),
        parameters=(weight,),
    )
    graph.drop(entering)
    return made


def rotate(graph: Graph, entering: Tensor, kernels: Kernels, part: float = 1.0) -> Tensor:
    """Rotary positions over this part of every head. The caller keeps what enters."""
    if kernels.rotary == "fused":
        return graph.op("rotary", entering.size_bytes, (entering,), grads=(None,), in_place_of=entering)
    if not kernels.joins_rotary and part == 1:
        return _turned(graph, entering, kernels)
    size = entering.size_bytes
    turning, passing = graph.split("rotary part", entering, (size * part, size * (1 - part)))
    turned = _turned(graph, turning, kernels)
    graph.drop(turning)
    made = graph.op("rotary join", size, (turned, passing), grads=(None, None))
    graph.drop(turned, passing)
    return made


def _turned(graph: Graph, entering: Tensor, kernels: Kernels) -> Tensor:
    size = entering.size_bytes * (2 if kernels.wide_rotary else 1)
    narrow = entering.size_bytes
    cosine = graph.op("rotary cosine", size, (entering,))
    negative = graph.op("rotary half", narrow / 2, (entering,), backward_temporaries=(narrow,))
    turned = graph.op("rotary turn", narrow, (entering, negative), grads=(narrow, None))
    graph.drop(negative)
    sine = graph.op("rotary sine", size, (turned,))
    graph.drop(turned)
    made = graph.op("rotary sum", size, (cosine, sine), grads=(None, None))
    graph.drop(cosine, sine)
    if not kernels.wide_rotary:
        return made
    back = graph.op("rotary cast back", narrow, (made,))
    graph.drop(made)
    return back


def gated(graph: Graph, gates: Tensor, make_ups: Callable[[], Tensor], kernels: Kernels) -> Tensor:
    """The activated gate times the other side, which is made after the activation. Takes over the gate."""
    if kernels.gate == "fused":
        ups = make_ups()
        made = graph.op("gated activation", gates.size_bytes, (gates, ups), keeps=(gates, ups))
        graph.drop(gates, ups)
        return made
    if kernels.gate == "clamped":
        return _clamped(graph, gates, make_ups())
    active = activate(graph, gates, kernels)
    ups = make_ups()
    made = graph.op("gated product", active.size_bytes, (active, ups), keeps=(active, ups))
    graph.drop(active, ups)
    return made


def _clamped(graph: Graph, gates: Tensor, ups: Tensor) -> Tensor:
    """(up + 1) times the gate's swish, both clamped. Takes over what enters."""
    size = gates.size_bytes
    gate = graph.op("gate clamped", size, (gates,), keeps=(gates,))
    up = graph.op("up clamped", size, (ups,), keeps=(ups,))
    graph.drop(gates, ups)
    steep = graph.op("gate scaled", size, (gate,))
    bent = graph.op("gate's sigmoid", size, (steep,), keeps_output=True)
    graph.drop(steep)
    swish = graph.op("swish", size, (gate, bent), keeps=(gate, bent))
    graph.drop(bent)
    raised = graph.op("up + 1", size, (up,), grads=(None,))
    made = graph.op("gated product", size, (raised, swish), keeps=(raised, swish))
    graph.drop(gate, up, swish, raised)
    return made


def activate(graph: Graph, entering: Tensor, kernels: Kernels) -> Tensor:
    """An activation function. Takes over what enters."""
    size = entering.size_bytes
    if kernels.activation == "steps":
        made = _gelu_by_steps(graph, entering)
    elif kernels.activation == "relu":
        made = graph.op("activation", size, (entering,), keeps_output=True)
    elif kernels.activation == "xielu":
        # Which side of zero it is on, and three steps of the formula.
        steps = (size, size, size, size / 2)
        made = graph.op("activation", size, (entering,), keeps=(entering,), keeps_bytes=steps)
    else:
        others = (size,) * 3 if kernels.activation == "own" else ()
        made = graph.op("activation", size, (entering,), keeps=(entering,), backward_temporaries=others)
    graph.drop(entering)
    return made


def _gelu_by_steps(graph: Graph, entering: Tensor) -> Tensor:
    """Half of x, times 1 + tanh of a polynomial of x: each step a tensor of its own."""
    size = entering.size_bytes
    half = graph.op("half", size, (entering,))
    cube = graph.op("cube", size, (entering,), keeps=(entering,), backward_temporaries=(size,))
    small = graph.op("small cube", size, (cube,))
    graph.drop(cube)
    summed = graph.op("polynomial", size, (entering, small), grads=(None, None))
    graph.drop(small)
    inner = graph.op("scaled polynomial", size, (summed,))
    graph.drop(summed)
    bent = graph.op("tanh", size, (inner,), keeps_output=True)
    graph.drop(inner)
    raised = graph.op("tanh + 1", size, (bent,), grads=(None,))
    graph.drop(bent)
    made = graph.op("activation", size, (half, raised), keeps=(half, raised))
    graph.drop(half, raised)
    return made


def embedding_sums(tokens: float, vocabulary: int, hidden: int) -> tuple[float, ...]:
    """What the gradient of an embedding takes inside: sorted indices, and a partial sum for every few rows.

    Source: aten/src/ATen/native/cuda/EmbeddingBackwardKernel.cu of PyTorch 2.4 to 2.13.
    """
    if tokens <= _UNSORTED_INDICES:
        return ()
    segments = min(tokens, vocabulary)
    partial = tokens // _ROWS_PER_SUM + segments
    indices = (2 * tokens + 3 * segments + partial) * _INDEX
    return indices, partial * round_up(hidden, _WARP) * _FLOAT


def softcapped(graph: Graph, entering: Tensor) -> Tensor:
    """Scaled, through a tanh, and scaled back. Takes over what enters."""
    size = entering.size_bytes
    scaled = graph.op("softcap's division", size, (entering,))
    graph.drop(entering)
    bent = graph.op("softcap's tanh", size, (scaled,), keeps_output=True)
    graph.drop(scaled)
    made = graph.op("softcap", size, (bent,))
    graph.drop(bent)
    return made


def split(graph: Graph, fused: Tensor, sizes: list[float]) -> list[Tensor]:
    """Views of one tensor. Takes over what enters."""
    parts = graph.split("split", fused, sizes)
    graph.drop(fused)
    return parts
