"""From the last hidden state to the loss, in the forms that trainers use.

Notation: T tokens, V vocabulary (this rank's), `width` bytes of an element of the hidden state.
"""

from __future__ import annotations

from typing import Literal

from memplan.budget.training.autograd import Graph, Tensor
from memplan.budget.training.device import Block
from memplan.budget.training.linear import Linear
from memplan.units import ceil_div

_FLOAT = 4
# narrow: code of a model's own that shifts 16 bit logits; plain: transformers up to 4.48 (logits cast to FP32, shifted,
# log-softmax); plain-flat: without the shifted copy, as transformers from 4.49 on, which shifts labels
# (loss/loss_utils.py); fused: logits are made and cast, the kernel keeps nothing and writes gradients over them;
# linear: head and loss in one kernel, by parts of the tokens; chunked: logits of a part of the tokens at a time, each
# recorded.
LossForm = Literal["narrow", "plain", "plain-flat", "compiled", "in-place", "fused", "linear", "chunked"]


def run_loss(
    graph: Graph,
    head: Linear,
    hidden: Tensor,
    tokens: float,
    width: int,
    form: LossForm,
    *,
    chunks: int,
    keeps_logits: bool,
    gathered_ranks: int,
    is_parallel: bool,
    casts: bool,
    is_compiled: bool,
    lasting: list[Block] | None,
) -> Tensor:
    """The loss of every token of a micro-batch. Takes over the hidden state.

    gathered_ranks: over how many ranks logits are gathered first, where the loss is not computed over parts of the
    vocabulary; is_parallel: it is. casts: autocast computes a
    loss of 16 bit logits in FP32. is_compiled: one kernel reads each part's logits, and keeps nothing else of them.
    lasting: where FP32 logits go that somebody holds until the step is over.
    """
    if form == "linear":
        return _linear(graph, head, hidden, tokens, width)
    if form == "chunked":
        return _chunked(graph, head, hidden, tokens, width, chunks, is_compiled=is_compiled)
    logits = head.run(graph, hidden, tokens, width)
    if form == "narrow":
        made = _narrow(graph, logits, _FLOAT if not casts else width)
        graph.drop(hidden)
        return made
    if gathered_ranks > 1:
        whole = graph.op("gathered logits", logits.size_bytes * gathered_ranks, (logits,), grads=(logits.size_bytes,))
        graph.drop(logits)
        logits = whole
    if form == "compiled":
        made = _compiled(graph, logits)
        graph.drop(logits, hidden)
        return made
    wide = _widened(graph, logits, width)
    if lasting is not None:
        lasting.append(graph.device.share(wide.block))
    if form == "in-place":
        # Megatron: softmax is computed over the FP32 logits, and its gradient over the softmax.
        made = graph.op("loss", _FLOAT, (wide,), keeps=(wide,), grads=(0,))
        graph.drop(logits, wide, hidden)
        return made
    if not keeps_logits:
        graph.drop(logits)
    made = _of_wide(graph, wide, tokens, form, is_parallel=is_parallel)
    graph.drop(hidden)
    if keeps_logits:
        graph.drop(logits)
    return made


def _of_wide(graph: Graph, wide: Tensor, tokens: float, form: LossForm, *, is_parallel: bool) -> Tensor:
    """The loss of FP32 logits, which it takes over."""
    if form == "plain-flat":
        made = _log_softmax(graph, wide, copies=2 if is_parallel else 0)
        graph.drop(wide)
        return made
    shifted = graph.op("shifted logits", wide.size_bytes, (wide,), grads=(wide.size_bytes,))
    if form == "fused":
        made = graph.op("fused loss", tokens * _FLOAT, (shifted,), keeps=(shifted,), grads=(0,))
    else:
        made = _log_softmax(graph, shifted)
    graph.drop(wide, shifted)
    return made


def _compiled(graph: Graph, logits: Tensor) -> Tensor:
    return graph.op("compiled loss", _FLOAT, (logits,), keeps=(logits,), grads=(logits.size_bytes,))


def _widened(graph: Graph, logits: Tensor, width: int) -> Tensor:
    if width == _FLOAT:
        graph.device.share(logits.block)
        return logits
    return graph.op("logits in FP32", logits.size_bytes / width * _FLOAT, (logits,))


def _narrow(graph: Graph, logits: Tensor, width: int) -> Tensor:
    """Shifted as they are; autocast casts inside of the loss, and what is returned once more. Takes the logits over.

    Sources: transformers/models/gpt_bigcode of 4.48; modeling_qwen.py of Qwen's first models;
    accelerate/utils/operations.py, ConvertOutputsToFp32.
    """
    shifted = graph.op("shifted logits", logits.size_bytes, (logits,), grads=(logits.size_bytes,))
    wide = _widened(graph, shifted, width)
    made = _log_softmax(graph, wide)
    graph.drop(wide, shifted)
    returned = _widened(graph, logits, width)
    graph.drop(logits, returned)
    return made


def _log_softmax(graph: Graph, logits: Tensor, *, copies: int = 0) -> Tensor:
    """`copies` are taken beside it where the softmax is computed step by step, as over parts of the vocabulary.

    Source: torch/distributed/tensor/parallel/loss.py, _log_softmax.
    """
    size = logits.size_bytes
    soft = graph.op("log-softmax", size, (logits,), keeps_output=True, temporaries=(size,) * copies)
    loss = graph.op("loss", _FLOAT, (soft,), keeps=(soft,))
    graph.drop(soft)
    return loss


def _linear(graph: Graph, head: Linear, hidden: Tensor, tokens: float, width: int) -> Tensor:
    """Gradients are made in the forward pass: the hidden state's in full, the head's where it is trained.

    Source: Liger kernel 0.3 to 0.6, ops/fused_linear_cross_entropy.py: parts of about T / (V / H) tokens.
    """
    device = graph.device
    rows = 1 << max((ceil_div(int(tokens), ceil_div(head.outputs, head.inputs)) - 1).bit_length(), 0)
    rows = min(rows, int(tokens))
    kept = [tokens * head.inputs * width]
    if head.weight.is_trained:
        kept.append(head.weight.grad_bytes)
    temporaries = [rows * head.outputs * width, rows * head.outputs * _FLOAT]
    held = [device.take(each, "activations", "loss by parts") for each in kept]
    loss = graph.op(
        "linear loss",
        _FLOAT,
        (hidden,),
        keeps_bytes=(),
        temporaries=temporaries,
        parameters=(head.weight,),
        grads=(0,),
    )
    graph.drop(hidden)
    if loss.node is not None:
        loss.node.kept += held
    else:
        for each in held:
            device.free(each)
    return loss


def _chunked(
    graph: Graph, head: Linear, hidden: Tensor, tokens: float, width: int, chunks: int, *, is_compiled: bool
) -> Tensor:
    """Every part has its own logits, cast and loss; logits of all parts are there first."""
    part = tokens / chunks
    logits = [
        head.run(
            graph,
            graph.op("part", hidden.size_bytes / chunks, (hidden,), grads=(hidden.size_bytes,), in_place_of=hidden),
            part,
            width,
        )
        for _ in range(chunks)
    ]
    graph.drop(*(hidden for _ in range(chunks)))
    losses = []
    for each in logits:
        if is_compiled:
            losses.append(_compiled(graph, each))
            continue
        wide = _widened(graph, each, width)
        losses.append(_log_softmax(graph, wide))
        graph.drop(wide)
    graph.drop(*logits)
    made = graph.op("sum of losses", _FLOAT, losses)
    graph.drop(*losses, hidden)
    return made
