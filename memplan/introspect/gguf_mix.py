"""Which ggml type every weight gets under a mix such as Q4_K_M: the choices of llama.cpp's quantizer.

A mix has a base type. The head, the embedding, the attention's values and outputs and the MLP's down projections get
more bits (or fewer) by their place: "more bits" go to the first and last eighth of the layers and to every third one
between. Grouped-query attention and models of eight experts have rules of their own. A row that does not divide into a
type's blocks falls back to a type with smaller blocks, at last to FP16.

Mixes that need an importance matrix are taken to have one, others to have none; `has_imatrix` overrides that.
`fused_as_values` treats a fused query-key-value weight like a value weight, as llama-quantize does since March 2026
(b8259); older files have types of their own for it. `tied_as_head` gives a tied embedding the type of a head, which
files from before March 2024 (b2366) do not. The names q2_k_l, q3_k_xl, q4_k_l, q5_k_l and q6_k_l are a publisher's
habit: the mix one size smaller with embedding and head in Q8_0.

Not modelled: the mixes of the ik fork beyond their base type; hand-made mixes that share a name (Unsloth's UD files).

Source: llama_tensor_get_type and tensor_allows_quantization in llama.cpp's quantizer, b2354 to the one vendored by
llama-cpp-python 0.3.36. Checked by: llama-quantize --dry-run, to the byte, over models and mixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memplan.domain.attention import ChunkedLocal, FullAttention, SlidingWindow
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Tensor
from memplan.errors import UsageError
from memplan.introspect.ggml_types import GGML_TYPES, GgmlType
from memplan.records import dataclass, replace

_TYPES: Mapping[str, GgmlType] = {kind.name: kind for kind in GGML_TYPES.values()}
_BASE: Mapping[str, str] = {
    **dict.fromkeys(("q2_k", "q2_k_s"), "q2_k"),
    **dict.fromkeys(("q3_k", "q3_k_s", "q3_k_m", "q3_k_l"), "q3_k"),
    **dict.fromkeys(("q4_k", "q4_k_s", "q4_k_m"), "q4_k"),
    **dict.fromkeys(("q5_k", "q5_k_s", "q5_k_m"), "q5_k"),
    "iq2_s": "iq2_xs",
    "iq2_m": "iq2_s",
    "iq3_xs": "iq3_s",
    "iq3_m": "iq3_s",
    "mxfp4_moe": "mxfp4",
    "iq3_kl": "iq3_k",
}
_SAME: Mapping[str, str] = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m", "mxfp4": "mxfp4_moe"}
_RICH_HEAD: Mapping[str, str] = {
    "q2_k_l": "q2_k",
    "q3_k_xl": "q3_k_l",
    "q4_k_l": "q4_k_m",
    "q5_k_l": "q5_k_m",
    "q6_k_l": "q6_k",
}
_SMALLER: Mapping[str, str] = {
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("q2_0", "q2_k", "q3_k", "tq1_0", "tq2_0"), "q4_0"),
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
}
_TINY = frozenset({"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m"})
_NEEDS_IMATRIX = _TINY | {"iq3_xxs", "q2_k_s"}
_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight"),
    *("time_mix_first.weight", "time_mix_lerp_fused.weight", "time_mix_decay_w", "position_embd", "token_types"),
    *(f"time_mix_{name}.weight" for name in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What the rules ask of a model."""

    architecture: str
    num_layers: int
    num_values: int
    experts: int
    heads_per_kv: int
    is_70b: bool
    is_tied: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """A mix by name, and how it was made."""

    name: str
    has_imatrix: bool
    fused_as_values: bool = True
    tied_as_head: bool = True
    rich_head: bool = False

    @property
    def base(self) -> str:
        return _BASE.get(self.name, self.name)

    @property
    def shown(self) -> str:
        """The name that asks for it."""
        return next((wide for wide, name in _RICH_HEAD.items() if self.rich_head and name == self.name), self.name)


@dataclass(slots=True)
class _Counts:
    """How many value and down projections have had their type so far."""

    values: int = 0
    downs: int = 0


def parse_mix(
    name: str, *, has_imatrix: bool | None = None, fused_as_values: bool = True, tied_as_head: bool = True
) -> Mix:
    """Return the mix that `name` means. Raises: UsageError for one whose base type ggml does not have."""
    given = name.lower()
    lowered = _RICH_HEAD.get(given) or _SAME.get(given, given)
    if _BASE.get(lowered, lowered) not in _TYPES:
        raise UsageError(f"unknown GGUF mix: `{name}`", hint="for example q4_k_m, q8_0 or iq4_xs")
    imatrix = lowered in _NEEDS_IMATRIX if has_imatrix is None else has_imatrix
    return Mix(
        name=lowered,
        has_imatrix=imatrix,
        fused_as_values=fused_as_values,
        tied_as_head=tied_as_head,
        rich_head=given in _RICH_HEAD,
    )


def apply_mix(spec: ModelSpec, mix: Mix) -> ModelSpec:
    """Return a model that goes by ggml's names with every weight in the type that the mix gives it."""
    model = _facts(spec)
    layers: list[Layer] = []
    made: dict[object, Layer] = {}
    counts = _Counts()
    for index, layer in enumerate(spec.layers):
        types = tuple(_layer_type(tensor, index, counts, model, mix) for tensor in layer.tensors)
        key = id(layer), types
        if key not in made:
            tensors = tuple(_typed(tensor, kind) for tensor, kind in zip(layer.tensors, types, strict=True))
            made[key] = replace(layer, tensors=tensors)
        layers.append(made[key])
    shared = tuple(_typed(tensor, _shared_type(tensor, model, mix)) for tensor in spec.shared)
    plain = mix.base in ("f16", "bf16", "f32")
    return replace(
        spec,
        layers=tuple(layers),
        shared=shared,
        dtype={"f32": DType.F32, "bf16": DType.BF16}.get(mix.base, DType.F16),
        quantization=None if plain else f"gguf:{mix.shown}",
        stored_bytes=None,
    )


def _facts(spec: ModelSpec) -> _Model:
    kinds = (FullAttention, SlidingWindow, ChunkedLocal)
    groups = [
        (layer.num_heads, cache.num_kv_heads)
        for layer in spec.layers[:1]
        for cache in layer.caches
        if isinstance(cache, kinds)
    ]
    heads, kv_heads = groups[0] if groups else (1, 1)
    has_70b = spec.model_type in ("llama", "qwen2", "deci", "olmo") and spec.num_layers == 80
    names = [tensor.name for layer in spec.layers for tensor in layer.tensors]
    return _Model(
        architecture=spec.model_type,
        num_layers=spec.num_layers,
        num_values=sum(_category(name) in ("values", "fused", "latent") for name in names),
        experts=max((layer.mlp.num_experts for layer in spec.layers if layer.mlp), default=0),
        heads_per_kv=heads // kv_heads if kv_heads else 0,
        is_70b=has_70b and not (spec.model_type == "llama" and heads == kv_heads),
        is_tied=not any(tensor.name == "output.weight" for tensor in spec.shared),
    )


def _category(name: str) -> str:
    """What the quantizer's rules take a layer's weight for."""
    if not name.endswith(".weight"):
        return ""
    exact = {
        "attn_qkv.weight": "fused",
        "attn_kv_b.weight": "latent",
        "attn_v.weight": "values",
        "attn_k.weight": "keys",
        "attn_q.weight": "queries",
        "attn_output.weight": "output",
    }
    if name in exact:
        return exact[name]
    for part in ("up", "gate", "down"):
        if name.startswith(f"ffn_{part}"):
            return part
    return ""


def _value_names(mix: Mix) -> tuple[str, ...]:
    return ("values", "fused", "latent") if mix.fused_as_values else ("values",)


def is_kept(tensor: Tensor) -> bool:
    """Whether the quantizer leaves a tensor in the type that the converter gave it."""
    is_vector = len(tensor.shape) < 2 or all(axis == 1 for axis in tensor.shape[:-1])
    if (is_vector and tensor.count == 1) or not tensor.name.endswith("weight"):
        return True
    return any(part in tensor.name for part in _KEPT)


def _more_bits(index: int, count: int) -> bool:
    """The first and last eighth, and every third in between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _layer_type(tensor: Tensor, index: int, counts: _Counts, model: _Model, mix: Mix) -> str | None:
    """The type of one weight of layer `index`; None keeps what it has."""
    if is_kept(tensor):
        return None
    if mix.base in ("f32", "f16", "bf16"):
        return mix.base
    if mix.name == "mxfp4_moe":
        return _fallback("mxfp4" if tensor.count > 1 else "q8_0", tensor)
    category = _category(tensor.name)
    if category in _value_names(mix):
        kind = _tiny_value_type(model, mix) if mix.name in _TINY else _value_type(counts.values, model, mix)
        counts.values += 1
    elif mix.name in _TINY:
        kind = _tiny_type(category, counts.downs, model, mix)
        counts.downs += category == "down"
    else:
        choose = _CHOICES.get(category)
        kind = choose(index, model, mix) if choose else mix.base
    return _fallback(kind, tensor)


def _richer(mix: Mix) -> str:
    return "iq3_s" if mix.name in ("iq2_s", "iq2_m") else "q2_k"


def _tiny_value_type(model: _Model, mix: Mix) -> str:
    return "q4_k" if model.heads_per_kv >= 4 or model.experts >= 4 else _richer(mix)


def _tiny_type(category: str, down: int, model: _Model, mix: Mix) -> str:
    """Below three bits: what must not be as small as the rest. `down` counts down projections, not layers."""
    if category == "keys" and model.experts == 8:
        return "q4_k"
    if category == "down" and down < model.num_layers // 8:
        return _richer(mix)
    if category == "output":
        if model.experts == 8:
            return "q5_k"
        if mix.name in ("iq1_s", "iq1_m"):
            return "iq2_xxs"
        return "iq3_s" if mix.name in ("iq2_s", "iq2_m") else mix.base
    return mix.base


def _value_type(index: int, model: _Model, mix: Mix) -> str:
    grouped = model.heads_per_kv >= 4
    kind = mix.base
    if mix.name == "q2_k":
        kind = "q4_k" if grouped else "q3_k"
    elif mix.name == "iq3_xxs":
        kind = "q4_k" if grouped else "iq3_xxs" if mix.has_imatrix else "iq3_s"
    elif (mix.name in ("q2_k_s", "iq3_xs", "iq3_s") and grouped) or mix.name == "iq3_m":
        kind = "q4_k"
    elif mix.name == "q3_k_m":
        kind = "q5_k" if index < 2 else "q4_k"
    elif mix.name == "q3_k_l" or (mix.name in ("iq4_nl", "iq4_xs") and grouped):
        kind = "q5_k"
    elif mix.name in ("q4_k_m", "q5_k_m") and _more_bits(index, model.num_values):
        kind = "q6_k"
    elif mix.name == "q4_k_s" and index < 4:
        kind = "q5_k"
    if model.is_70b and kind in ("q3_k", "q4_k"):
        kind = "q5_k"
    return "q8_0" if model.experts == 8 else kind


def _key_type(index: int, model: _Model, mix: Mix) -> str:
    return "q8_0" if model.experts == 8 else _query_type(index, model, mix)


def _query_type(index: int, model: _Model, mix: Mix) -> str:
    return {"iq3_xs": "iq3_xxs", "iq3_xxs": "iq2_s"}.get(mix.name, mix.base)


def _down_type(index: int, model: _Model, mix: Mix) -> str:
    count, falcon = model.num_layers, model.architecture == "falcon"
    early, more = index < count // 8, _more_bits(index, count)
    if mix.name == "q2_k":
        return "q3_k"
    if mix.name == "iq3_xxs" and not mix.has_imatrix:
        return "q4_k" if early else "q3_k"
    if mix.name == "q3_k_m":
        return "q5_k" if index < count // 16 else "q4_k" if not falcon or more else "q3_k"
    if mix.name == "q3_k_l":
        return "q4_k" if falcon else "q5_k"
    if mix.name == "q4_k_m" and falcon:
        return "q6_k" if index < count // 16 else "q5_k" if more else "q4_k"
    if mix.name in ("q4_k_m", "q5_k_m"):
        return "q6_k" if more else mix.base
    if mix.name == "iq3_m":
        return "q4_k" if early or (model.experts == 8 and more) else mix.base
    if not early:
        return mix.base
    if mix.name == "q4_k_s":
        return mix.base if falcon else "q5_k"
    if mix.has_imatrix:
        return {"q4_0": "q4_1", "q5_0": "q5_1", "q2_k_s": "q4_k"}.get(mix.name, mix.base)
    return {"iq4_nl": "q5_k", "iq4_xs": "q5_k", "q2_k_s": "q4_k"}.get(mix.name, mix.base)


_OUTPUT: Mapping[str, str] = {"q2_k": "q3_k", "iq3_xxs": "iq3_s", "q3_k_m": "q4_k", "q3_k_l": "q5_k", "iq3_m": "q4_k"}
_OUTPUT_OF_EIGHT = frozenset(
    {"q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq3_xs", "iq3_xxs", "iq3_s", "iq3_m", "iq4_nl", "iq4_xs"}
)


def _output_type(index: int, model: _Model, mix: Mix) -> str:
    if model.architecture == "falcon":
        return "q4_k" if mix.name == "q3_k_l" else mix.base
    if model.experts == 8:
        return "q5_k" if mix.name in _OUTPUT_OF_EIGHT else mix.base
    return _OUTPUT.get(mix.name, mix.base)


def _fused_type(index: int, model: _Model, mix: Mix) -> str:
    return {"q3_k_m": "q4_k", "q3_k_l": "q4_k", "iq3_m": "q4_k", "q4_k_m": "q5_k", "q5_k_m": "q6_k"}.get(
        mix.name, mix.base
    )


def _up_type(index: int, model: _Model, mix: Mix) -> str:
    middle = model.num_layers // 8 <= index < 7 * model.num_layers // 8
    return "iq3_xxs" if mix.name == "iq3_xs" and middle else mix.base


_CHOICES: Mapping[str, Callable[[int, _Model, Mix], str]] = {
    "keys": _key_type,
    "queries": _query_type,
    "down": _down_type,
    "output": _output_type,
    "fused": _fused_type,
    "gate": _up_type,
    "up": _up_type,
}


def _shared_type(tensor: Tensor, model: _Model, mix: Mix) -> str | None:
    if is_kept(tensor):
        return None
    if mix.base in ("f32", "f16", "bf16"):
        return mix.base
    is_embedding = tensor.name in ("token_embd.weight", "per_layer_token_embd.weight")
    is_head = tensor.name == "output.weight" or (model.is_tied and is_embedding and mix.tied_as_head)
    if mix.rich_head and (is_head or is_embedding):
        return _fallback("q8_0", tensor)
    if is_head:
        return _fallback(_head_type(tensor, model, mix), tensor)
    if mix.name == "mxfp4_moe":
        return _fallback("q8_0", tensor)
    kind = mix.base
    if is_embedding:
        if mix.name in ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs"):
            kind = "q2_k"
        elif mix.name in ("iq2_s", "iq2_m", "iq3_xxs"):
            kind = "iq3_s"
        elif mix.name in ("tq1_0", "tq2_0", "q2_0"):
            kind = "q4_k"
    return _fallback(kind, tensor)


def _head_type(tensor: Tensor, model: _Model, mix: Mix) -> str:
    if mix.name == "mxfp4_moe" or model.architecture == "falcon" or tensor.shape[-1] % _TYPES[mix.base].block:
        return "q8_0"
    if mix.name in _TINY or mix.name == "iq3_xxs":
        return "q5_k"
    return "q8_0" if mix.base == "q8_0" else "q6_k"


def _fallback(kind: str, tensor: Tensor) -> str:
    """The type, or the one that takes its place where rows do not divide into its blocks."""
    width = tensor.shape[-1]
    if not width % _TYPES[kind].block:
        return kind
    smaller = _SMALLER.get(kind, kind)
    return smaller if not width % _TYPES[smaller].block else "f16"


def _typed(tensor: Tensor, kind: str | None) -> Tensor:
    if kind is None:
        return tensor
    form = _TYPES[kind]
    return replace(tensor, dtype=form.dtype, storage=form.storage())
