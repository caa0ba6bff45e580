"""The feed-forward part of a layer: dense, or routed experts in the forms that trainers run them.

Notation: T tokens of the micro-batch on this rank, H hidden size, `width` bytes of an element.
"""

from __future__ import annotations

from typing import Literal

from memplan.budget.training.autograd import Graph, Parameter, Tensor
from memplan.budget.training.kernels import Kernels, activate, gated, split
from memplan.budget.training.linear import Linear
from memplan.records import dataclass

_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpBlock:
    """A dense feed-forward part: `ups` has the gate and the other side, one of them alone, or both fused."""

    before: Parameter | None
    ups: tuple[Linear, ...]
    down: Linear
    is_gated: bool
    after: Parameter | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsBlock:
    """Routed experts: every token is copied for each of the `chosen` experts that it goes to.

    `parts` are experts that run together, each with its up projections and its down projection: one part where all
    run in one product, several where code goes from expert to expert. `form`: in turn, in one product of
    tokens sorted by expert, or all experts on copies of all tokens, weighted before.
    """

    before: Parameter | None
    router: Linear
    parts: tuple[tuple[tuple[Linear, ...], Linear], ...]
    is_gated: bool
    chosen: int
    num_experts: int
    share: float
    shared: MlpBlock | None = None
    wide_router: bool = False
    form: Literal["looped", "grouped", "dense", "dispatched"] = "looped"
    ranks: int = 1
    after: Parameter | None = None


def run_mlp(graph: Graph, half: MlpBlock, normed: Tensor, tokens: float, width: int, kernels: Kernels) -> Tensor:
    return feed_forward(graph, half.ups, half.down, normed, tokens, width, kernels, is_gated=half.is_gated)


def feed_forward(
    graph: Graph,
    ups: tuple[Linear, ...],
    down: Linear,
    normed: Tensor,
    tokens: float,
    width: int,
    kernels: Kernels,
    *,
    is_gated: bool,
) -> Tensor:
    """Up, activation, down. The caller keeps what enters."""
    first = ups[0].run(graph, normed, tokens, width)
    if not is_gated:
        product = activate(graph, first, kernels)
    elif len(ups) == 1:
        halves = split(graph, first, [first.size_bytes / 2, first.size_bytes / 2])
        product = gated(graph, halves[0], lambda: halves[1], kernels)
    else:
        product = gated(graph, first, lambda: ups[1].run(graph, normed, tokens, width), kernels)
    made = down.run(graph, product, tokens, width)
    graph.drop(product)
    return made


def run_experts(
    graph: Graph, half: ExpertsBlock, normed: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    if half.wide_router and width != _FLOAT:
        wide = graph.op("router's cast", normed.size_bytes / width * _FLOAT, (normed,))
        scores = half.router.run(graph, wide, tokens, _FLOAT)
        graph.drop(wide)
    else:
        scores = half.router.run(graph, normed, tokens, width)
    weights = graph.op(
        "routing weights", tokens * half.num_experts * 4, (scores,), keeps_output=True, grads=(scores.size_bytes,)
    )
    graph.drop(scores)
    made = _EXPERTS[half.form](graph, half, normed, weights, tokens, width, kernels)
    graph.drop(weights)
    if half.shared is not None:
        beside = feed_forward(
            graph, half.shared.ups, half.shared.down, normed, tokens, width, kernels, is_gated=half.shared.is_gated
        )
        summed = graph.op("shared experts added", made.size_bytes, (made, beside), grads=(None, None))
        graph.drop(made, beside)
        made = summed
    return made


def _routed(
    graph: Graph, half: ExpertsBlock, normed: Tensor, weights: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    """Tokens copied for the experts that they are sent to, and what those make weighted and added up."""
    rows = tokens * half.chosen * half.share / len(half.parts)
    hidden_bytes = normed.size_bytes / tokens
    made = graph.tensor(tokens * hidden_bytes, "experts' outputs summed", needs_grad=False)
    for ups, down in half.parts:
        sent = graph.op("tokens sent to experts", rows * hidden_bytes, (normed,))
        each = feed_forward(graph, ups, down, sent, rows, width, kernels, is_gated=half.is_gated)
        weighted = graph.op(
            "experts' outputs weighted",
            each.size_bytes,
            (each, weights),
            keeps=(each, weights),
            grads=(each.size_bytes, weights.size_bytes / len(half.parts)),
        )
        graph.drop(sent, each)
        summed = graph.op(
            "experts' outputs summed",
            made.size_bytes,
            (made, weighted),
            grads=(None, weighted.size_bytes),
            in_place_of=made,
        )
        graph.drop(weighted, made)
        made = summed
    return made


def _grouped(
    graph: Graph, half: ExpertsBlock, normed: Tensor, weights: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    """Tokens sorted by expert, through all experts in one product, weighted, sorted back and added up."""
    (ups, down), *_ = half.parts
    rows = tokens * half.chosen * half.share
    sent = graph.op("tokens sent to experts", normed.size_bytes / tokens * rows, (normed,))
    each = feed_forward(graph, ups, down, sent, rows, width, kernels, is_gated=half.is_gated)
    size = each.size_bytes / width * (_FLOAT if half.wide_router else width)
    grads = (each.size_bytes, weights.size_bytes)
    weighted = graph.op("experts' outputs weighted", size, (each, weights), keeps=(each, weights), grads=grads)
    # It keeps the order, which is small; what matters is that it keeps anything.
    back = graph.op("experts' outputs sorted", size, (weighted,), keeps=(weights,), backward_temporaries=(size,))
    graph.drop(weighted, sent, each)
    made = graph.op("experts' outputs summed", tokens / rows * size, (back,), grads=(size,))
    graph.drop(back)
    if not half.wide_router or width == _FLOAT:
        return made
    narrow = graph.op("experts' outputs", normed.size_bytes, (made,))
    graph.drop(made)
    return narrow


def _dispatched(
    graph: Graph, half: ExpertsBlock, normed: Tensor, weights: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    """Tokens weighted in FP32, sent to the ranks of their experts, padded and sorted there, and the same way back.

    Source: torchtitan 0.2, models/moe/moe.py and utils.py, distributed/expert_parallel.py.
    """
    (ups, down), *_ = half.parts
    rows = tokens * half.chosen * half.share
    size = normed.size_bytes / tokens * rows
    wide_bytes = size / width * _FLOAT
    state = graph.op("tokens sent to experts", size, (normed,))
    state = _then(graph, "tokens in FP32", wide_bytes, state)
    grads = (wide_bytes, weights.size_bytes)
    weighted = graph.op("tokens weighted", wide_bytes, (state, weights), keeps=(state, weights), grads=grads)
    graph.drop(state)
    state = _then(graph, "tokens cast back", size, weighted)
    for step in ("tokens of other ranks", "tokens padded", "tokens sorted")[half.ranks == 1 :]:
        state = _then(graph, step, size, state)
    each = feed_forward(graph, ups, down, state, rows, width, kernels, is_gated=half.is_gated)
    graph.drop(state)
    for step in ("experts' outputs sorted", "experts' outputs sent back")[: 1 + (half.ranks > 1)]:
        each = _then(graph, step, size, each)
    made = graph.op("experts' outputs summed", normed.size_bytes, (each,), grads=(size,))
    graph.drop(each)
    return made


def _then(graph: Graph, name: str, size: float, entering: Tensor) -> Tensor:
    """Takes over what enters."""
    made = graph.op(name, size, (entering,))
    graph.drop(entering)
    return made


def _dense(
    graph: Graph, half: ExpertsBlock, normed: Tensor, weights: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    """All tokens, weighted, through all experts; what those make is added up."""
    (ups, down), *_ = half.parts
    rows = tokens * half.num_experts * half.share
    size = normed.size_bytes * half.num_experts * half.share
    copied = graph.op("tokens for every expert", size, (normed,))
    sent = graph.op("tokens weighted", size, (copied, weights), keeps=(copied, weights))
    graph.drop(copied)
    each = feed_forward(graph, ups, down, sent, rows, width, kernels, is_gated=half.is_gated)
    graph.drop(sent)
    made = graph.op("experts' outputs summed", normed.size_bytes, (each,), grads=(None,))
    graph.drop(each)
    return made


_EXPERTS = {"looped": _routed, "grouped": _grouped, "dense": _dense, "dispatched": _dispatched}
