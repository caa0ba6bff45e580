"""Attention in the forms that models are trained with: a fused kernel, PyTorch's plain formula, a model's own.

Sources: aten/src/ATen/native/SoftMax.cpp, transformers/attention.cpp and its cuda/sdp_utils.cpp, flash_api.cpp of
PyTorch 2.4 to 2.13, torch/distributed/tensor/experimental/_context_parallel (gathered keys); transformers 4.48 to 5.23,
integrations/sdpa_attention.py and the models' eager_attention_forward.
"""

from __future__ import annotations

from typing import Literal

from memplan.budget.training.autograd import WORKSPACE, Graph, Tensor
from memplan.budget.training.kernels import Kernels, softcapped
from memplan.records import dataclass
from memplan.units import round_up

_HALF, _FLOAT = 2, 4
AttentionKernel = Literal["flash", "efficient", "math", "eager"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The heads of one attention over `batch` sequences of `tokens`. Keys may be fewer, a value of another width.

    is_masked: a mask of numbers is made for this layer, and kept. is_reordered: queries lie head by head, so that
    what comes out is copied back. is_wide: scores are computed in FP32 from FP32 copies. copies_single: keys are
    copied for query heads also where there is one, of which others make a view. has_sinks: the softmax is over one
    column more, and not in FP32. is_latent: what is cached is narrower. is_saved: selective checkpointing
    keeps what it makes. is_narrowed: queries, keys and values are cast to 16 bits first. context: over how many
    ranks a sequence is cut, each of which gathers the keys and values of all.
    """

    batch: float
    tokens: float
    queries: float
    keys: float
    width: int
    value_width: int
    kernel: AttentionKernel = "flash"
    is_masked: bool = False
    is_reordered: bool = False
    is_wide: bool = False
    copies_single: bool = False
    has_sinks: bool = False
    is_latent: bool = False
    is_saved: bool = True
    is_narrowed: bool = False
    context: int = 1

    def bytes_of(self, heads: float, head_width: int, element_bytes: int) -> float:
        return self.batch * self.tokens * heads * head_width * element_bytes


def attend(
    graph: Graph, query: Tensor, key: Tensor, value: Tensor, heads: Heads, width: int, kernels: Kernels
) -> Tensor:
    """Attention. Takes over queries, keys and values; returns every head's output as [batch, tokens, heads x width]."""
    if kernels.caches_keys and not heads.is_latent:
        key, value = _cached(graph, key), _cached(graph, value)
    if heads.is_narrowed:
        query, key, value = (_narrowed(graph, each) for each in (query, key, value))
        width = _HALF
    if heads.kernel == "flash":
        return _fused(graph, query, key, value, heads, width, _flash_backward(heads, width))
    if heads.kernel == "math":
        return _plain_formula(graph, query, key, value, heads, width)
    key = _repeated(graph, key, heads, heads.width, width)
    value = _repeated(graph, value, heads, heads.value_width, width)
    if heads.kernel == "efficient":
        return _fused(graph, query, key, value, heads, width, _efficient_backward(heads, width))
    return _own_formula(graph, query, key, value, heads, width, kernels)


def _cached(graph: Graph, entering: Tensor) -> Tensor:
    """Takes over what enters."""
    made = graph.op("cached keys", entering.size_bytes, (entering,), grads=(None,))
    graph.drop(entering)
    return made


def _narrowed(graph: Graph, entering: Tensor) -> Tensor:
    """Takes over what enters."""
    made = graph.op("attention's cast", entering.size_bytes / _FLOAT * _HALF, (entering,))
    graph.drop(entering)
    return made


def _repeated(graph: Graph, entering: Tensor, heads: Heads, head_width: int, width: int) -> Tensor:
    """Keys or values once for every query head. Takes over what enters."""
    if heads.keys == heads.queries or (heads.keys == 1 and not heads.copies_single):
        return entering
    made = graph.op("repeated keys", heads.bytes_of(heads.queries, head_width, width), (entering,))
    graph.drop(entering)
    return made


def _fused(
    graph: Graph,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: Heads,
    width: int,
    backward_temporaries: tuple[float, ...],
) -> Tensor:
    mask = (heads.tokens * heads.tokens * width,) if heads.is_masked else ()
    sums = heads.batch * heads.queries * round_up(int(heads.tokens), 32 if heads.kernel == "efficient" else 1) * _FLOAT
    gathered = ((key.size_bytes + value.size_bytes) * heads.context,) if heads.context > 1 else ()
    made = graph.op(
        "attention",
        heads.bytes_of(heads.queries, heads.value_width, width),
        (query, key, value),
        keeps=(query, key, value),
        keeps_bytes=(sums, *mask),
        keeps_output=True,
        temporaries=gathered,
        backward_temporaries=(*backward_temporaries, *gathered),
        is_stashed=heads.is_saved,
    )
    graph.drop(query, key, value)
    return _reordered(graph, made) if heads.is_reordered else made


def _reordered(graph: Graph, entering: Tensor) -> Tensor:
    """Takes over what enters."""
    made = graph.op("attention's layout", entering.size_bytes, (entering,), grads=(None,))
    graph.drop(entering)
    return made


def _flash_backward(heads: Heads, width: int) -> tuple[float, ...]:
    """Gradients of queries summed in FP32, a sum for each row, and keys and values once for every query head."""
    rows = heads.batch * round_up(int(heads.tokens), 128) * heads.queries
    padded = round_up(heads.width, 32 if heads.width <= 128 else 64)
    sums = (rows * padded * _FLOAT, rows * _FLOAT)
    if heads.keys == heads.queries:
        return sums
    return (
        *sums,
        heads.bytes_of(heads.queries, heads.width, width),
        heads.bytes_of(heads.queries, heads.value_width, width),
    )


def _efficient_backward(heads: Heads, width: int) -> tuple[float, ...]:
    """A sum for each row, and for 16 bits the gradients of queries summed in FP32."""
    rows = heads.batch * heads.queries
    sums = rows * heads.tokens * _FLOAT
    if width == _FLOAT:
        return (sums,)
    return sums, rows * round_up(int(heads.tokens), 64) * round_up(heads.width, 64) * _FLOAT


def _plain_formula(graph: Graph, query: Tensor, key: Tensor, value: Tensor, heads: Heads, width: int) -> Tensor:
    """PyTorch's own formula, in FP32: both sides of the product are scaled, the mask is added in place."""
    wide_query, wide_key, wide_value = (_in_float(graph, each, width) for each in (query, key, value))
    scaled = graph.op("scaled queries", wide_query.size_bytes, (wide_query,))
    mask = graph.tensor(heads.tokens * heads.tokens * _FLOAT, "mask")
    keys = _repeated(graph, graph.alias(wide_key), heads, heads.width, _FLOAT)
    values = _repeated(graph, graph.alias(wide_value), heads, heads.value_width, _FLOAT)
    scaled_keys = graph.op("scaled keys", keys.size_bytes, (keys,))
    count = heads.batch * heads.queries * heads.tokens * heads.tokens
    scores = graph.op("scores", count * _FLOAT, (scaled, scaled_keys), keeps=(scaled, scaled_keys))
    graph.drop(scaled_keys)
    softened = graph.op("softmax", count * _FLOAT, (scores,), keeps_output=True)
    # Which scores are minus infinity: a truth for each.
    graph.drop(graph.tensor(count, "softmax", category=WORKSPACE), scores)
    size = heads.bytes_of(heads.queries, heads.value_width, _FLOAT)
    out = graph.op("attention", size, (softened, values), keeps=(softened, values))
    narrow = out
    if width != _FLOAT:
        narrow = graph.op("attention's cast back", size / _FLOAT * width, (out,))
        graph.drop(out)
    graph.drop(wide_query, wide_key, wide_value, scaled, mask, keys, values, softened)
    moved = _reordered(graph, narrow)
    graph.drop(query, key, value)
    return moved


def _in_float(graph: Graph, entering: Tensor, width: int) -> Tensor:
    if width == _FLOAT:
        graph.device.share(entering.block)
        return entering
    return graph.op("attention's cast", entering.size_bytes / width * _FLOAT, (entering,))


def _own_formula(
    graph: Graph, query: Tensor, key: Tensor, value: Tensor, heads: Heads, width: int, kernels: Kernels
) -> Tensor:
    """Scores and their softmax, in full; transformers computes the softmax in FP32 and casts it back."""
    count = heads.batch * heads.queries * heads.tokens * heads.tokens
    scores_width = width
    if heads.is_wide and width != _FLOAT:
        narrow = query, key
        query, key = (_in_float(graph, each, width) for each in narrow)
        graph.drop(*narrow)
        scores_width = _FLOAT
    product = graph.op("scores", count * scores_width, (query, key), keeps=(query, key))
    scores = graph.op("scaled scores", count * scores_width, (product,))
    graph.drop(product)
    if kernels.softcaps:
        scores = softcapped(graph, scores)
    if heads.has_sinks:
        return _with_sinks(graph, query, key, value, scores, heads, width)
    masked = graph.op("masked scores", count * scores_width, (scores,), grads=(None,))
    graph.drop(scores)
    # Of 16 bits only FP16 has a kernel that reads narrow scores; a copy of BF16 is made first.
    wide = _in_float(graph, masked, scores_width)
    softened = graph.op("softmax", count * _FLOAT, (wide,), keeps_output=True)
    graph.drop(wide)
    probabilities = softened
    if width != _FLOAT:
        probabilities = graph.op("softmax cast", count * width, (softened,))
        graph.drop(softened)
    graph.drop(masked)
    size = heads.bytes_of(heads.queries, heads.value_width, width)
    out = graph.op("attention", size, (probabilities, value), keeps=(probabilities, value))
    moved = _reordered(graph, out)
    # The code holds them by name until it returns.
    graph.drop(probabilities, query, key, value)
    return moved


def _with_sinks(
    graph: Graph, query: Tensor, key: Tensor, value: Tensor, scores: Tensor, heads: Heads, width: int
) -> Tensor:
    """The softmax over scores and one sink for each head, less their largest. Takes over what enters."""
    size = scores.size_bytes
    masked = graph.op("masked scores", size, (scores,), grads=(None,))
    graph.drop(scores)
    joined = graph.op("scores and sinks", size, (masked,), grads=(None,))
    lowered = graph.op("lowered scores", size, (joined,), grads=(None,))
    graph.drop(joined)
    probabilities = graph.op("softmax", size, (lowered,), keeps_output=True)
    made = heads.bytes_of(heads.queries, heads.value_width, width)
    out = graph.op("attention", made, (probabilities, value), keeps=(probabilities, value))
    moved = _reordered(graph, out)
    graph.drop(masked, lowered, probabilities, query, key, value)
    return moved
