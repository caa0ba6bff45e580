"""How families of models are built where their tensors do not say it: norms, rotary positions, activations, halves that
run side by side.

Sources: transformers 4.45 to 5.23, models/*/modeling_*.py, by the model types named here. Families that are not in the
table are built like Llama, with LayerNorm where norms have a bias.
"""

from __future__ import annotations

from typing import Literal

from memplan.budget.training.kernels import Kernels
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role
from memplan.domain.training import TrainingSpec
from memplan.records import dataclass, replace

NormForm = Literal["eager", "eager-wide", "eager-plain", "eager-centred", "fused", "layer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What is unlike Llama.

    norm: see `Kernels`; None is read off the tensors. has_rotary: False for learned or no positions. joins_rotary:
    what is rotated is joined with what is not, which makes a copy in the heads' order, also where all is rotated.
    wide_rotary: in FP32. is_parallel: attention and feed-forward part read the same state. has_dropout: after the
    embedding and after every half. softcaps: a tanh over scores and logits. is_masked: attention is always given a
    mask. own_attention: code of its own, without any kernel; wide_scores: with queries and keys in
    FP32. wide_router: so are the router's input and product. has_sinks: scores have one column more, and their softmax
    is not computed in FP32. clamps_gate: gates are clamped and gated by their own sigmoid. dense_experts: every expert
    is run on every token. has_narrow_loss: the loss is given 16 bit logits, where others cast them first.
    wide_residual: the state between layers is kept in FP32.
    """

    norm: NormForm | None = None
    has_rotary: bool = True
    joins_rotary: bool = False
    wide_rotary: bool = False
    activation: Literal["kernel", "relu", "steps", "own", "xielu"] = "kernel"
    clamps_gate: bool = False
    is_parallel: bool = False
    has_dropout: bool = False
    softcaps: bool = False
    is_masked: bool = False
    own_attention: bool = False
    wide_scores: bool = False
    wide_router: bool = False
    has_sinks: bool = False
    dense_experts: bool = False
    wide_residual: bool = False
    has_narrow_loss: bool = False


_DENSE_EXPERTS = Family(dense_experts=True)
_OLMO_2 = Family(norm="eager-wide", wide_rotary=True)
_COHERE = Family(norm="eager-centred", is_parallel=True, wide_rotary=True)
_WIDE_ROUTER = Family(wide_router=True)
_GEMMA = Family(norm="eager-wide")
FAMILIES = {
    "apertus": Family(activation="xielu"),
    "bloom": Family(has_rotary=False, activation="own", own_attention=True),
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "deepseek_v2": _WIDE_ROUTER,
    "deepseek_v3": _WIDE_ROUTER,
    "falcon": Family(is_parallel=True, is_masked=True),
    "flex_olmo": Family(wide_rotary=True),
    "gemma": _GEMMA,
    "gemma2": Family(norm="eager-wide", softcaps=True),
    "gemma3": _GEMMA,
    "gemma3_text": _GEMMA,
    "glm4_moe": _WIDE_ROUTER,
    "glm_moe_dsa": _WIDE_ROUTER,
    "glm": Family(joins_rotary=True),
    "glm4": Family(joins_rotary=True),
    "gpt2": Family(has_rotary=False, activation="steps", has_dropout=True),
    "gpt_bigcode": Family(has_rotary=False, has_dropout=True, has_narrow_loss=True),
    "gpt_neo": Family(has_rotary=False, activation="steps", own_attention=True, wide_scores=True),
    "gpt_neox": Family(is_parallel=True, joins_rotary=True),
    "gpt_oss": Family(norm="eager-wide", own_attention=True, has_sinks=True, clamps_gate=True, joins_rotary=True),
    "gptj": Family(is_parallel=True, activation="steps", joins_rotary=True, own_attention=True, wide_scores=True),
    "llama4": _DENSE_EXPERTS,
    "llama4_text": _DENSE_EXPERTS,
    "mamba": Family(wide_residual=True),
    "mamba2": Family(wide_residual=True),
    "mpt": Family(norm="layer", has_rotary=False, own_attention=True),
    "olmo": Family(norm="eager-plain", wide_rotary=True),
    "olmo2": _OLMO_2,
    "olmo3": _OLMO_2,
    "opt": Family(has_rotary=False, activation="relu", has_dropout=True),
    "persimmon": Family(joins_rotary=True),
    "phi": Family(is_parallel=True, joins_rotary=True, activation="steps"),
    "phi3": Family(joins_rotary=True),
    "qwen": Family(has_narrow_loss=True),
    "stablelm": Family(joins_rotary=True),
}
_LIKE_LLAMA = Family()


def family_of(spec: ModelSpec, training: TrainingSpec) -> Family:
    """The family of a model, as transformers has it. Trainers with kernels of their own drop nothing out."""
    found = FAMILIES.get(spec.model_type, _LIKE_LLAMA)
    if training.kernels == "transformers":
        return found
    return replace(found, activation="kernel", has_dropout=False)


def kernels_of(spec: ModelSpec, training: TrainingSpec, kernels: Kernels) -> Kernels:
    """The operators of a trainer, in the forms that a model's code has. Kernels of a trainer's own replace those."""
    family = family_of(spec, training)
    norm, rotary = kernels.norm, kernels.rotary
    if norm == "eager":
        norm = family.norm or ("layer" if _has_norm_bias(spec) else "eager")
    if not family.has_rotary:
        rotary = "none"
    return replace(
        kernels,
        norm=norm,
        rotary=rotary,
        joins_rotary=family.joins_rotary,
        wide_rotary=family.wide_rotary and training.compute_bytes == 2,
        activation=family.activation,
        gate="clamped" if family.clamps_gate and kernels.gate == "eager" else kernels.gate,
        softcaps=family.softcaps,
        caches_keys=training.caches_keys,
    )


def _has_norm_bias(spec: ModelSpec) -> bool:
    return any(each.role is Role.NORM and each.name.endswith(".bias") for each in spec.layers[0].tensors)
