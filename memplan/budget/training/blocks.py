"""One layer of a decoder as the operators that it runs, read off the model's own tensors.

A layer is a mixer (attention, latent attention, or a recurrent mixer by its projections) and a feed-forward part
(dense or routed), each behind a norm and with the residual added after it. Widths are per tensor-parallel rank.

Notation: T tokens of the micro-batch on this rank, H hidden size, `width` bytes of an element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memplan.budget.training.attention import Heads, attend
from memplan.budget.training.autograd import Graph, Parameter, Tensor
from memplan.budget.training.feed_forward import ExpertsBlock, MlpBlock, run_experts, run_mlp
from memplan.budget.training.kernels import Kernels, norm, rotate, split
from memplan.budget.training.linear import Linear
from memplan.budget.training.recurrent import ShortConvBlock, short_convolution
from memplan.budget.training.scans import DeltaNetBlock, Mamba2Block, MambaBlock, delta_net, mamba, mamba2
from memplan.records import dataclass

_HALF, _FLOAT = 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBlock:
    """Softmax attention. `into` are the projections of queries, keys and values: three, or one fused. `is_gated`: the
    first of them makes a gate for every query, too, whose sigmoid what comes out is multiplied by.
    """

    before: Parameter | None
    into: tuple[Linear, ...]
    out: Linear
    heads: Heads
    rotary_part: float = 1.0
    per_head_norms: tuple[Parameter, ...] = ()
    is_gated: bool = False
    after: Parameter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentBlock:
    """Multi-head latent attention: queries and keys through narrow latents."""

    before: Parameter | None
    query_down: Linear | None
    query_norm: Parameter | None
    query_up: Linear
    latent_down: Linear
    latent_norm: Parameter
    latent_up: Linear
    out: Linear
    heads: Heads
    rope_width: int
    after: Parameter | None = None


Half = (
    AttentionBlock | LatentBlock | ShortConvBlock | MambaBlock | Mamba2Block | DeltaNetBlock | MlpBlock | ExpertsBlock
)
ATTENDING = (AttentionBlock, LatentBlock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A whole layer: its halves in order, with residuals around them.

    Over `ranks` tensor-parallel ranks every half ends in a sum over ranks; with sequence parallelism the state between
    halves is cut into `state_share` parts, gathered behind the norm and scattered by that sum; `gathers_again`: for the
    backward pass once more.
    """

    halves: tuple[Half, ...]
    hidden_size: int
    ranks: int = 1
    state_share: int = 1
    gathers_again: bool = False
    has_dropout: bool = False
    is_parallel: bool = False
    wide_residual: bool = False


def run_layer(graph: Graph, layer: Layer, entering: Tensor, tokens: float, width: int, kernels: Kernels) -> Tensor:
    """Run a layer. The caller keeps what enters."""
    if layer.is_parallel:
        return _side_by_side(graph, layer, entering, tokens, width, kernels)
    if layer.wide_residual and width != _FLOAT:
        return _with_wide_residual(graph, layer, entering, tokens, width, kernels)
    size = tokens * layer.hidden_size * width / layer.state_share
    state = entering
    for half in layer.halves:
        normed = _normed(graph, layer, half, state, tokens, width, kernels)
        made = _half(graph, layer, half, normed, tokens, width, kernels)
        graph.drop(normed)
        summed = graph.op("residual", size, (state, made), grads=(None, None))
        graph.drop(made)
        if state is not entering:
            graph.drop(state)
        state = summed
    return state


def _with_wide_residual(
    graph: Graph, layer: Layer, entering: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    """What a half reads is cast down before its norm; what it makes is added to the state in FP32."""
    size = tokens * layer.hidden_size * width
    state = graph.alias(entering)
    for half in layer.halves:
        is_wide = state.size_bytes > size
        narrow = graph.op("state's cast", size, (state,)) if is_wide else graph.alias(state)
        normed = _normed(graph, layer, half, narrow, tokens, width, kernels)
        graph.drop(narrow)
        wide = graph.alias(state) if is_wide else graph.op("state in FP32", size / width * _FLOAT, (state,))
        made = _half(graph, layer, half, normed, tokens, width, kernels)
        graph.drop(normed)
        summed = graph.op("residual", size / width * _FLOAT, (wide, made), grads=(None, size))
        graph.drop(made, wide, state)
        state = summed
    return state


def _side_by_side(graph: Graph, layer: Layer, entering: Tensor, tokens: float, width: int, kernels: Kernels) -> Tensor:
    """Halves that read the same state; one that has no norm of its own reads what the first one's made."""
    size = tokens * layer.hidden_size * width / layer.state_share
    made = []
    normed: Tensor | None = None
    for half in layer.halves:
        if normed is None or half.before is not None:
            if normed is not None:
                graph.drop(normed)
            normed = _normed(graph, layer, half, entering, tokens, width, kernels)
        made.append(_half(graph, layer, half, normed, tokens, width, kernels))
    state = made.pop()
    for each in (*made, entering):
        summed = graph.op("residual", size, (state, each), grads=(None, None))
        graph.drop(state)
        state = summed
    graph.drop(*made, *([normed] if normed is not None else []))
    return state


def _normed(
    graph: Graph, layer: Layer, half: Half, state: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    """What a half reads."""
    if half.before is None:
        graph.device.share(state.block)
        return state
    normed = norm(graph, state, half.before, tokens / layer.state_share, width, kernels)
    if layer.state_share == 1:
        return normed
    return gathered(graph, normed, layer.state_share, is_kept=not layer.gathers_again)


def gathered(graph: Graph, part: Tensor, ranks: int, *, is_kept: bool) -> Tensor:
    """The tokens of all ranks; where they are not kept, this rank's part is. Takes that over."""
    keeps = () if is_kept else (part,)
    whole = graph.op("gathered tokens", part.size_bytes * ranks, (part,), keeps=keeps, grads=(part.size_bytes,))
    graph.drop(part)
    whole.is_gathered_again = not is_kept
    return whole


def _half(
    graph: Graph, layer: Layer, half: Half, normed: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    """What a half adds to the state. The caller keeps what enters."""
    size = tokens * layer.hidden_size * width / layer.state_share
    made = _RUNNERS[type(half)](graph, half, normed, tokens, width, kernels)
    if layer.state_share > 1:
        part = graph.op("scattered sum", size, (made,))
        graph.drop(made)
        made = part
    if half.after is not None:
        made = _taken_over(graph, made, half.after, tokens / layer.state_share, width, kernels)
    if layer.has_dropout:
        made = dropped(graph, made, width)
    return made


def dropped(graph: Graph, entering: Tensor, width: int) -> Tensor:
    """Dropout, which keeps a mask of one byte for each element. Takes over what enters."""
    made = graph.op("dropout", entering.size_bytes, (entering,), keeps_bytes=(entering.size_bytes / width,))
    graph.drop(entering)
    return made


def _attention(
    graph: Graph, half: AttentionBlock, normed: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    projected = [each.run(graph, normed, tokens, width) for each in half.into]
    heads = half.heads
    sizes = [
        tokens * count * each * width
        for count, each in (
            (heads.queries, heads.width),
            (heads.keys, heads.width),
            (heads.keys, heads.value_width),
        )
    ]
    if len(projected) == 1:
        projected = split(graph, projected[0], sizes)
    query, key, value = projected
    gate = None
    if half.is_gated:
        query, passing = graph.split("queries and gates", query, (sizes[0], sizes[0]))
        graph.drop(projected[0])
        gate = graph.op("gates in order", sizes[0], (passing,), grads=(None,))
        graph.drop(passing)
    for weight in half.per_head_norms:
        if weight.name.rsplit(".", 1)[-1].startswith("q"):
            query = _taken_over(graph, query, weight, tokens * heads.queries, width, kernels)
        else:
            key = _taken_over(graph, key, weight, tokens * heads.keys, width, kernels)
    query, key = _rotated(graph, query, key, half.rotary_part, kernels)
    # The code that runs it names them until it returns.
    named = [graph.alias(each) for each in (query, key, value)]
    out = attend(graph, query, key, value, heads, width, kernels)
    if gate is not None:
        bent = graph.op("gate's sigmoid", gate.size_bytes, (gate,), keeps_output=True)
        gated = graph.op("gated output", out.size_bytes, (out, bent), keeps=(out, bent))
        graph.drop(out, bent, gate)
        out = gated
    made = half.out.run(graph, out, tokens, _HALF if heads.is_narrowed else width)
    graph.drop(out, *named)
    return made


def _rotated(graph: Graph, query: Tensor, key: Tensor, part: float, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """Both are alive until both are rotated, as the code that runs it has it."""
    if kernels.rotary == "none" or part == 0:
        return query, key
    turned = rotate(graph, query, kernels, part), rotate(graph, key, kernels, part)
    graph.drop(query, key)
    return turned


def _taken_over(graph: Graph, entering: Tensor, weight: Parameter, rows: float, width: int, kernels: Kernels) -> Tensor:
    made = norm(graph, entering, weight, rows, width, kernels)
    graph.drop(entering)
    return made


def _latent(graph: Graph, half: LatentBlock, normed: Tensor, tokens: float, width: int, kernels: Kernels) -> Tensor:
    queries_from = normed
    if half.query_down is not None and half.query_norm is not None:
        narrow = half.query_down.run(graph, normed, tokens, width)
        queries_from = _taken_over(graph, narrow, half.query_norm, tokens, width, kernels)
    query = half.query_up.run(graph, queries_from, tokens, width)
    if queries_from is not normed:
        graph.drop(queries_from)
    latent = half.latent_down.run(graph, normed, tokens, width)
    kept = graph.op(
        "latent", tokens * half.latent_up.inputs * width, (latent,), grads=(latent.size_bytes,), in_place_of=latent
    )
    scaled = norm(graph, kept, half.latent_norm, tokens, width, kernels)
    expanded = half.latent_up.run(graph, scaled, tokens, width)
    graph.drop(scaled)
    heads = half.heads
    key = graph.op("keys", tokens * heads.keys * heads.width * width, (expanded, latent), grads=(None, None))
    turning = query.size_bytes * half.rope_width / heads.width
    passing, narrow = graph.split("queries' parts", query, (query.size_bytes - turning, turning))
    turned = graph.op("rotated queries", turning, (narrow,))
    query_made = graph.op("queries", query.size_bytes, (passing, turned), grads=(None, None))
    graph.drop(kept, latent)
    value = graph.op(
        "values",
        tokens * heads.keys * heads.value_width * width,
        (expanded,),
        grads=(expanded.size_bytes,),
        in_place_of=expanded,
    )
    graph.drop(expanded)
    named = [query, passing, narrow, turned, *(graph.alias(each) for each in (query_made, key, value))]
    out = attend(graph, query_made, key, value, heads, width, kernels)
    made = half.out.run(graph, out, tokens, width)
    graph.drop(out, *named)
    return made


_RUNNERS: Mapping[type, Callable[..., Tensor]] = {
    AttentionBlock: _attention,
    LatentBlock: _latent,
    ShortConvBlock: short_convolution,
    MambaBlock: mamba,
    Mamba2Block: mamba2,
    DeltaNetBlock: delta_net,
    MlpBlock: run_mlp,
    ExpertsBlock: run_experts,
}
