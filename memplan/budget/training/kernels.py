"""The small operators of a layer, each as the code that people run computes it: norms, rotary positions, attention,
gated activations.

`Kernels` says which form of each is used. Bytes of an element of what is computed: `width`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from memplan.budget.training.autograd import Graph, Parameter, Tensor
from memplan.records import dataclass
from memplan.units import round_up

_FLOAT = 4
AttentionKernel = Literal["flash", "flash-sdpa", "efficient", "math", "eager"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Which form of an operator runs.

    norm: `eager` computes in FP32 step by step (transformers' RMSNorm), `fused` in one kernel that keeps its input.
    rotary: `eager` rotates halves with slices and concatenation, `fused` in place.
    gate: `eager` keeps both sides and the activated gate, `fused` both sides alone.
    """

    norm: Literal["eager", "fused", "layer"] = "eager"
    rotary: Literal["eager", "fused", "none"] = "eager"
    gate: Literal["eager", "fused"] = "eager"
    attention: AttentionKernel = "flash"


def norm(graph: Graph, entering: Tensor, weight: Parameter, rows: float, width: int, kernels: Kernels) -> Tensor:
    """Normalise every row. The caller keeps what enters."""
    size = entering.size_bytes
    if kernels.norm != "eager":
        return graph.op(
            weight.name, size, (entering,), keeps=(entering,), keeps_bytes=(rows * _FLOAT,), parameters=(weight,)
        )
    wide_bytes = size / width * _FLOAT
    wide = entering if width == _FLOAT else graph.op("norm's cast", wide_bytes, (entering,))
    squares = graph.op(
        "norm's squares", wide_bytes, (wide,), keeps=(wide,), backward_temporaries=(wide_bytes, wide_bytes)
    )
    roots = graph.op("norm's roots", rows * _FLOAT, (squares,), keeps_output=True, grads=(wide_bytes,))
    graph.drop(squares)
    scaled = graph.op(
        "norm's scaling", wide_bytes, (wide, roots), keeps=(wide, roots), backward_temporaries=(wide_bytes,)
    )
    graph.drop(roots)
    if wide is not entering:
        graph.drop(wide)
    narrow = scaled if width == _FLOAT else graph.op("norm's cast back", size, (scaled,))
    made = graph.op(
        weight.name,
        size,
        (narrow,),
        keeps=(narrow,) if weight.is_trained else (),
        backward_temporaries=(size,) if weight.is_trained else (),
        parameters=(weight,),
    )
    graph.drop(scaled)
    if narrow is not scaled:
        graph.drop(narrow)
    return made


def rotate(graph: Graph, entering: Tensor, kernels: Kernels) -> Tensor:
    """Rotary positions. Takes over what enters."""
    size = entering.size_bytes
    if kernels.rotary == "none":
        return entering
    if kernels.rotary == "fused":
        return graph.op("rotary", size, (entering,), grads=(None,), in_place_of=entering)
    cosine = graph.op("rotary cosine", size, (entering,))
    negative = graph.op("rotary half", size / 2, (entering,), backward_temporaries=(size,))
    turned = graph.op("rotary turn", size, (entering, negative), grads=(size, None))
    graph.drop(negative)
    sine = graph.op("rotary sine", size, (turned,))
    graph.drop(turned)
    made = graph.op("rotary sum", size, (cosine, sine), grads=(None, None))
    graph.drop(cosine, sine)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The heads of one attention over `batch` sequences of `tokens`. Keys may be fewer, a value of another width."""

    batch: float
    tokens: float
    queries: float
    keys: float
    width: int
    value_width: int


def attend(
    graph: Graph, query: Tensor, key: Tensor, value: Tensor, heads: Heads, width: int, kernels: Kernels
) -> Tensor:
    """Attention. Takes over queries, keys and values; returns every head's output as [batch, tokens, heads x width]."""
    if kernels.attention in ("math", "eager"):
        return _materialised(graph, query, key, value, heads, width, kernels)
    rows = heads.batch * heads.tokens * heads.queries
    made = graph.op(
        "attention",
        rows * heads.value_width * width,
        (query, key, value),
        keeps=(query, key, value),
        keeps_bytes=(rows * _FLOAT,),
        keeps_output=True,
        backward_temporaries=_flash_backward(heads, width),
        is_stashed=True,
    )
    graph.drop(query, key, value)
    return made


def _flash_backward(heads: Heads, width: int) -> tuple[float, ...]:
    """Gradients of queries summed in FP32, a sum for each row, and keys and values once for every query head."""
    rows = heads.batch * round_up(int(heads.tokens), 128) * heads.queries
    sums = (rows * round_up(heads.width, 32) * _FLOAT, rows * _FLOAT)
    if heads.keys == heads.queries:
        return sums
    expanded = heads.batch * heads.tokens * heads.queries * width
    return (*sums, expanded * heads.width, expanded * heads.value_width)


def _materialised(
    graph: Graph, query: Tensor, key: Tensor, value: Tensor, heads: Heads, width: int, kernels: Kernels
) -> Tensor:
    """Scores and their softmax, in full; transformers computes the softmax in FP32 and casts it back."""
    repeated = []
    for each, each_width in ((key, heads.width), (value, heads.value_width)):
        size = heads.batch * heads.tokens * heads.queries * each_width * width
        if heads.keys != heads.queries:
            wider = graph.op("repeated keys", size, (each,))
            graph.drop(each)
            repeated.append(wider)
        else:
            repeated.append(each)
    keys, values = repeated
    count = heads.batch * heads.queries * heads.tokens * heads.tokens
    scores = graph.op("scores", count * width, (query, keys), keeps=(query, keys))
    scaled = graph.op("scaled scores", count * width, (scores,))
    graph.drop(scores)
    masked = graph.op("masked scores", count * width, (scaled,), grads=(None,))
    graph.drop(scaled)
    softened = graph.op("softmax", count * _FLOAT, (masked,), keeps_output=True, grads=(count * _FLOAT,))
    probabilities = graph.op("softmax cast", count * width, (softened,))
    graph.drop(softened, masked)
    out = graph.op(
        "attention",
        heads.batch * heads.tokens * heads.queries * heads.value_width * width,
        (probabilities, values),
        keeps=(probabilities, values),
    )
    graph.drop(probabilities, query, keys, values)
    moved = graph.op("attention's layout", out.size_bytes, (out,), grads=(None,))
    graph.drop(out)
    return moved


def gated(graph: Graph, gates: Tensor, make_ups: Callable[[], Tensor], kernels: Kernels) -> Tensor:
    """The activated gate times the other side, which is made after the activation. Takes over the gate."""
    if kernels.gate == "fused":
        ups = make_ups()
        made = graph.op("gated activation", gates.size_bytes, (gates, ups), keeps=(gates, ups))
        graph.drop(gates, ups)
        return made
    active = activate(graph, gates)
    ups = make_ups()
    made = graph.op("gated product", active.size_bytes, (active, ups), keeps=(active, ups))
    graph.drop(active, ups)
    return made


def activate(graph: Graph, entering: Tensor) -> Tensor:
    """An activation function. Takes over what enters."""
    made = graph.op("activation", entering.size_bytes, (entering,), keeps=(entering,))
    graph.drop(entering)
    return made
