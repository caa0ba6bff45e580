"""Mixers that carry a state along the sequence, by the kernels that people train them with: Mamba, Mamba-2, gated delta
net.

Every kernel is one operator: it keeps what its source saves for the backward pass and computes the rest again there.
States are kept for no token; inside a kernel there is one for every chunk of 64 (delta net) or 128 or 256 (Mamba-2).

Sources: mamba-ssm 2.2, ops/triton/ssd_combined.py (MambaSplitConv1dScanCombinedFn keeps what was projected and what is
to be normalised; states in FP32) and ops/selective_scan_interface.py (MambaInnerFn at checkpoint level 1);
flash-linear-attention 0.3 to 0.4, ops/gated_delta_rule/chunk.py (keeps normalised queries and keys, values, gates and
one triangle of 64 columns a token); causal-conv1d 1.5 (keeps its input); transformers 5.23, models/mamba, mamba2,
nemotron_h, granitemoehybrid, qwen3_next and qwen3_5, which call them where they are installed.
Checked by: benchmarks/training/against_scans.py, transformers' own code with stand-ins for the kernels.
Not modelled: transformers' code without these kernels, which `memplan profile` runs; tensor parallelism.
"""

from __future__ import annotations

from memplan.budget.training.autograd import ACTIVATIONS, WORKSPACE, Graph, Parameter, Tensor
from memplan.budget.training.kernels import Kernels
from memplan.budget.training.linear import Linear
from memplan.records import dataclass

_FLOAT = 4
_DELTA_CHUNK = 64
_SCAN_CHUNK = 2048  # Mamba keeps a state for so many tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Block:
    """`into` makes the gate, what is convolved (`inner`, and two of `groups` x `state`) and a step for each head; the
    kernel goes on to the output. `small` are the convolution, A, D, the steps' bias and the norm.
    """

    before: Parameter | None
    into: Linear
    small: tuple[Parameter, ...]
    out: Linear
    inner: int
    heads: int
    state: int
    groups: int
    chunk: int
    is_padded: bool = False
    after: Parameter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaBlock:
    """`into` makes what is scanned and its gate, `narrow` the step (`rank` wide) and both sides of the state."""

    before: Parameter | None
    into: Linear
    small: tuple[Parameter, ...]
    narrow: Linear
    step: Linear
    out: Linear
    inner: int
    rank: int
    state: int
    is_padded: bool = False
    after: Parameter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaNetBlock:
    """`into` are the projections: queries, keys and values in one, the gate, both factors of the state; or all in two
    (`is_joined`), whose parts are copied into order. Heads of queries are fewer than those of values.
    """

    before: Parameter | None
    into: tuple[Linear, ...]
    convolution: Parameter
    small: tuple[Parameter, ...]
    norm: Parameter
    out: Linear
    key_heads: int
    key_width: int
    value_heads: int
    value_width: int
    is_joined: bool = False
    is_padded: bool = False
    after: Parameter | None = None


def mamba2(graph: Graph, half: Mamba2Block, normed: Tensor, tokens: float, width: int, kernels: Kernels) -> Tensor:
    """Run it. The caller keeps what enters."""
    read = _without_padding(graph, normed, is_padded=half.is_padded)
    projected = half.into.run(graph, read, tokens, width)
    graph.drop(read)
    inner = tokens * half.inner * width
    convolved = inner + 2 * tokens * half.groups * half.state * width
    steps = tokens * half.heads * _FLOAT
    states = tokens / half.chunk * half.inner * half.state
    squares = tokens * half.groups * half.chunk * _FLOAT
    inside = steps, steps, states * _FLOAT, states * width, squares
    backward = (
        *(convolved, inner, inner, steps, steps, steps),
        *(states * _FLOAT, states * width, states * _FLOAT, states * _FLOAT, squares, squares, convolved),
    )
    return _in_one(
        graph,
        "state space scan",
        tokens * half.out.outputs * width,
        projected,
        kept=(inner, tokens * half.groups * _FLOAT),
        inside=inside,
        beside=(convolved, inner),
        backward=backward,
        parameters=(*half.small, half.out.weight),
    )


def mamba(graph: Graph, half: MambaBlock, normed: Tensor, tokens: float, width: int, kernels: Kernels) -> Tensor:
    """Run it. The caller keeps what enters."""
    read = _without_padding(graph, normed, is_padded=half.is_padded)
    projected = half.into.run(graph, read, tokens, width)
    graph.drop(read)
    inner = tokens * half.inner * width
    narrow = tokens * (half.rank + 2 * half.state) * width
    sides = tokens * half.state * width
    states = -(-tokens // _SCAN_CHUNK) * half.inner * 2 * half.state * _FLOAT
    return _in_one(
        graph,
        "selective scan",
        tokens * half.out.outputs * width,
        projected,
        kept=(narrow, sides, sides, states, inner),
        inside=(inner, inner),
        beside=(inner,),
        backward=(inner,) * 6,
        parameters=(*half.small, half.narrow.weight, half.step.weight, half.out.weight),
    )


def _in_one(
    graph: Graph,
    name: str,
    size_bytes: float,
    projected: Tensor,
    *,
    kept: tuple[float, ...],
    inside: tuple[float, ...],
    beside: tuple[float, ...],
    backward: tuple[float, ...],
    parameters: tuple[Parameter, ...],
) -> Tensor:
    """A kernel up to the layer's output: `inside` is gone, `beside` is still there, when the output is made. Takes over
    what enters.
    """
    device = graph.device
    waiting = [device.take(each, ACTIVATIONS, name) for each in kept]
    around = [device.take(each, WORKSPACE, name) for each in beside]
    for each in [device.take(each, WORKSPACE, name) for each in inside]:
        device.free(each)
    made = graph.op(
        name,
        size_bytes,
        (projected,),
        keeps=(projected,),
        backward_temporaries=backward,
        parameters=parameters,
    )
    for each in around:
        device.free(each)
    if made.node is not None:
        made.node.kept += waiting
    else:
        for each in waiting:
            device.free(each)
    graph.drop(projected)
    return made


def delta_net(graph: Graph, half: DeltaNetBlock, normed: Tensor, tokens: float, width: int, kernels: Kernels) -> Tensor:
    """Run it. The caller keeps what enters."""
    keys = tokens * half.key_heads * half.key_width * width
    values = tokens * half.value_heads * half.value_width * width
    gates = tokens * half.value_heads
    joined, gate, factor, decay = _projected(graph, half, normed, tokens, width)
    convolved = graph.op("convolution", joined.size_bytes, (joined,), keeps=(joined,), parameters=(half.convolution,))
    graph.drop(joined)
    query, key, value = graph.split("queries, keys and values", convolved, (keys, keys, values))
    graph.drop(convolved)
    learnt = graph.op("sigmoid", gates * width, (factor,), keeps_output=True)
    wide = graph.op("decay in FP32", gates * _FLOAT, (decay,))
    shifted = graph.op("decay's bias", gates * _FLOAT, (wide,), grads=(None,))
    graph.drop(wide)
    bent = graph.op("softplus", gates * _FLOAT, (shifted,), keeps=(shifted,))
    graph.drop(shifted)
    scaled = graph.op("decay", gates * _FLOAT, (bent,), keeps=(bent,), parameters=half.small)
    graph.drop(bent)
    made = _rule(graph, half, (query, key, value, scaled, learnt), tokens, width)
    graph.drop(scaled)
    normal = _gated_norm(graph, half, made, gate, width, kernels)
    graph.drop(made)
    out = half.out.run(graph, normal, tokens, width)
    graph.drop(normal, query, key, value, gate, factor, decay, learnt)
    return out


def _without_padding(graph: Graph, normed: Tensor, *, is_padded: bool) -> Tensor:
    """What is read; of several sequences a copy in which padding is nought."""
    if not is_padded:
        return graph.alias(normed)
    return graph.op("without padding", normed.size_bytes, (normed,))


def _projected(graph: Graph, half: DeltaNetBlock, normed: Tensor, tokens: float, width: int) -> list[Tensor]:
    """What is convolved, the gate, and both factors of the state."""
    keys = tokens * half.key_heads * half.key_width * width
    values = tokens * half.value_heads * half.value_width * width
    factors = tokens * half.value_heads * width
    read = _without_padding(graph, normed, is_padded=half.is_padded)
    made = [each.run(graph, read, tokens, width) for each in half.into]
    graph.drop(read)
    if not half.is_joined:
        return made
    query, key, value, gate = graph.split("joined projections", made[0], (keys, keys, values, values))
    factor, decay = graph.split("factors", made[1], (factors, factors))
    ordered = graph.op("in order", 2 * keys + values, (query, key, value), grads=(None, None, None))
    own = graph.op("gate in order", values, (gate,), grads=(None,))
    graph.drop(*made, query, key, value, gate)
    return [ordered, own, factor, decay]


def _rule(graph: Graph, half: DeltaNetBlock, entering: tuple[Tensor, ...], tokens: float, width: int) -> Tensor:
    """The rule over chunks. Inputs are made contiguous, queries and keys normalised."""
    query, _, value, scaled, _ = entering
    per_value = tokens * half.value_heads
    triangle = per_value * _DELTA_CHUNK
    keyed = per_value * half.key_width * width
    states = tokens / _DELTA_CHUNK * half.value_heads * half.key_width * half.value_width * width
    sums = tokens * half.key_heads * _FLOAT
    again = keyed, value.size_bytes, value.size_bytes, states
    return graph.op(
        "gated delta rule",
        value.size_bytes,
        entering,
        keeps=(entering[4],),
        keeps_bytes=(
            *(query.size_bytes, query.size_bytes, value.size_bytes, sums, sums),
            *(scaled.size_bytes, triangle * width),
        ),
        temporaries=(query.size_bytes, triangle * _FLOAT, *again),
        backward_temporaries=(*again, states, value.size_bytes, keyed, keyed, keyed),
    )


def _gated_norm(
    graph: Graph, half: DeltaNetBlock, entering: Tensor, gate: Tensor, width: int, kernels: Kernels
) -> Tensor:
    """The norm over every head's values, times the gate's swish. The caller keeps both."""
    size = entering.size_bytes
    rows = size / width / half.value_width
    if kernels.norm == "fused":
        return graph.op(
            "gated norm",
            size,
            (entering, gate),
            keeps=(entering, gate),
            keeps_bytes=(rows * _FLOAT,),
            parameters=(half.norm,),
        )
    full = size / width * _FLOAT
    wide = graph.op("gated norm's cast", full, (entering,)) if width != _FLOAT else graph.alias(entering)
    squares = graph.op("norm's squares", full, (wide,), keeps=(wide,), backward_temporaries=(full, full))
    roots = graph.op("norm's roots", rows * _FLOAT, (squares,), keeps_output=True, grads=(full,))
    graph.drop(squares)
    scaled = graph.op("norm's scaling", full, (wide, roots), keeps=(wide, roots), backward_temporaries=(full,))
    graph.drop(wide, roots)
    narrow = graph.op("norm's cast back", size, (scaled,)) if width != _FLOAT else graph.alias(scaled)
    graph.drop(scaled)
    is_trained = half.norm.is_trained
    weighted = graph.op(
        half.norm.name,
        size,
        (narrow,),
        keeps=(narrow,) if is_trained else (),
        backward_temporaries=(size,) if is_trained else (),
        parameters=(half.norm,),
    )
    graph.drop(narrow)
    wide_gate = graph.op("gate's cast", full, (gate,)) if width != _FLOAT else graph.alias(gate)
    swish = graph.op("gate's swish", full, (wide_gate,), keeps=(wide_gate,))
    graph.drop(wide_gate)
    product = graph.op("gated product", full, (weighted, swish), keeps=(weighted, swish), grads=(size, full))
    graph.drop(weighted, swish)
    if width == _FLOAT:
        return product
    made = graph.op("gated product's cast", size, (product,))
    graph.drop(product)
    return made
