"""The moments of a feed-forward half: a dense MLP, and routed experts as transformers runs them.

Formula (docs/engines/transformers.md, "Feed-forward"), with R rows, S = R x experts per token, I the inner width:

    gated MLP            3 H + 3 I                                  x R e     4 I where gate and up are one projection
    MLP without a gate   3 H + 2 I                                  x R e     up to 4 I by the activation's own steps
    experts, grouped     3 H R e + (2 H e + 2 H w) S                w is 4 where routing weights stay in FP32, else e
                         3 H R e + (H + 4 I) S e                    while gating
    experts in a loop    4 H R e + 8 R x experts x experts per token, and the largest expert's share

Source: models/llama/modeling_llama.py, integrations/moe.py (grouped_mm_experts_forward, from 5.0),
models/mixtral/modeling_mixtral.py (4.36 to 4.57).
"""

from __future__ import annotations

from memplan.domain.model import Mlp
from memplan.engines.transformers.layer_shape import LayerShape
from memplan.engines.transformers.step import Moment, Step

_INDEX_BYTES = 8
_LOOP_IMBALANCE = 2


def feed_forward_moments(shape: LayerShape, hidden: int, step: Step) -> list[Moment]:
    """Return the moments of a layer's feed-forward half; none for a layer without.

    Eager attention's weights live on in the layer's frame until the layer is done.
    """
    kept = shape.num_heads * step.scores * step.element_bytes if step.attention == "eager" else 0
    return [Moment(each.size_bytes + kept, each.name, each.working) for each in _halves(shape, hidden, step)]


def _halves(shape: LayerShape, hidden: int, step: Step) -> list[Moment]:
    mlp = shape.mlp
    if mlp is None:
        return []
    if not mlp.num_experts:
        return [_dense(shape, mlp.intermediate, mlp.gated, hidden, step)]
    if step.family.dense_experts:
        moments = [_every_expert(mlp, hidden, step)]
    else:
        moments = _grouped(shape, mlp, hidden, step) if step.groups_experts else [_looped(mlp, hidden, step)]
    if mlp.shared_intermediate:
        moments.append(_dense(shape, mlp.shared_intermediate, mlp.gated, 2 * hidden, step))
    return moments


def _dense(shape: LayerShape, inner: int, gated: bool, hidden: int, step: Step) -> Moment:
    """The product of gate and up, while both are there."""
    copies = (4.0 if shape.is_fused else 3.0) if gated else step.family.mlp_copies
    states = 3 + step.family.more_hidden - (1 if shape.norms_afterwards else 0)
    size = round(step.rows * (states * hidden + copies * inner) * step.element_bytes)
    if shape.is_llm_int8:
        size = round(step.rows * ((states * hidden + inner) * step.element_bytes + inner * (4 + step.element_bytes)))
    return Moment(
        size,
        "MLP",
        f"{step.rows:,} tokens x ({copies:g} x {inner:,} + {states} x {hidden:,}) x {step.element_bytes} B",
    )


def _grouped(shape: LayerShape, mlp: Mlp, hidden: int, step: Step) -> list[Moment]:
    """All experts of a layer in one grouped product, over tokens sorted by expert."""
    chosen = step.rows * mlp.experts_per_token
    weighed = 4 if step.family.wide_routing else step.element_bytes
    held = step.rows * (4 if shape.keeps_shared else 3) * hidden * step.element_bytes
    held += step.rows * mlp.num_experts * (4 + step.element_bytes) + 4 * _INDEX_BYTES * chosen
    output_bytes = 2 * step.element_bytes + 2 * weighed
    inner = round((step.family.expert_copies if mlp.gated else 2) * mlp.intermediate)
    return [
        Moment(
            held + chosen * hidden * output_bytes,
            "experts' outputs",
            f"{chosen:,} token-expert pairs x {hidden:,} x {output_bytes} B",
        ),
        Moment(
            held + chosen * (hidden + inner) * step.element_bytes,
            "experts' MLP",
            f"{chosen:,} token-expert pairs x {hidden + inner:,} x {step.element_bytes} B",
        ),
    ]


def _looped(mlp: Mlp, hidden: int, step: Step) -> Moment:
    """One expert after the other; the fullest takes twice its even share of the tokens."""
    share = min(step.rows, -(-step.rows * mlp.experts_per_token * _LOOP_IMBALANCE // mlp.num_experts))
    mask = _INDEX_BYTES * step.rows * mlp.num_experts * mlp.experts_per_token
    width = 3 * mlp.intermediate + 3 * hidden
    size = step.rows * 4 * hidden * step.element_bytes + mask + share * width * step.element_bytes
    working = f"{share:,} tokens x {width:,} x {step.element_bytes} B at the fullest expert"
    return Moment(size, "experts in a loop", working)


def _every_expert(mlp: Mlp, hidden: int, step: Step) -> Moment:
    """Every token goes to every expert, weighed by zero where it was not routed."""
    copies = step.rows * mlp.num_experts
    width = hidden + 4 * mlp.intermediate
    size = step.rows * 3 * hidden * step.element_bytes + copies * width * step.element_bytes
    return Moment(size, "every expert for every token", f"{copies:,} rows x {width:,} x {step.element_bytes} B")
