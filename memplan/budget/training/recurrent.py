"""Gated short convolutions, which carry no state but a few tokens. Mixers with a state are in `scans`.

Source: transformers 4.54 to 5.23, models/lfm2/modeling_lfm2.py, with PyTorch's own convolution.
"""

from __future__ import annotations

from memplan.budget.training.autograd import Graph, Parameter, Tensor
from memplan.budget.training.kernels import Kernels
from memplan.budget.training.linear import Linear
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConvBlock:
    """A convolution over a few tokens between two gates: `into` makes both gates and what is convolved."""

    before: Parameter | None
    into: Linear
    convolution: Parameter
    out: Linear
    after: Parameter | None = None


def short_convolution(
    graph: Graph, half: ShortConvBlock, normed: Tensor, tokens: float, width: int, kernels: Kernels
) -> Tensor:
    """Run it. The caller keeps what enters."""
    fused = half.into.run(graph, normed, tokens, width)
    size = fused.size_bytes / 3
    first, second, entering = graph.split("gates", fused, (size, size, size))
    graph.drop(fused)
    gated = graph.op("first gate", size, (first, entering), keeps=(first, entering))
    graph.drop(first, entering)
    parameters = (half.convolution,)
    convolved = graph.op("short convolution", size, (gated,), keeps=(gated,), parameters=parameters)
    graph.drop(gated)
    made = graph.op("second gate", size, (second, convolved), keeps=(second, convolved))
    graph.drop(second, convolved)
    out = half.out.run(graph, made, tokens, width)
    graph.drop(made)
    return out
