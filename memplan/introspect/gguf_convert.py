"""A Hugging Face model as llama.cpp's converter writes it: ggml's names, fused and split weights, FP32 where it keeps
it.

Norms, biases, routers, convolutions and positions are FP32; matrices keep the file's 16-bit type until a mix is
chosen. Experts are stacked (here: counted), a latent attention's up-projection is cut into keys and values, fused
projections that the converter takes apart are taken apart.
Rotary factors of Llama 3.1 and Phi-3 become tensors.

Source: `prepare_tensors` of conversion/base.py and `modify_tensors` of the families, llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memplan.domain.attention import Cache, FullAttention, LatentAttention, SlidingWindow
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.introspect.gguf_arch import gguf_architecture
from memplan.introspect.gguf_caches import WINDOWED
from memplan.introspect.gguf_names import layer_name, shared_name
from memplan.records import replace

_EMBEDDING = "token_embd.weight"
# Families whose fused query, key and value weight the converter takes apart.
_SPLIT_QKV = frozenset({"baichuan", "internlm2"})
# Families whose fused gate and up weight of the experts stays fused.
_FUSED_EXPERTS = frozenset({"gemma4"})
# Vocabularies that the converter cuts to the tokenizer's, by architecture and rows.
_CUT_VOCABULARIES = {("gemma3", 262_208): 262_144}
_FLOAT32_NAMES = (
    "ffn_gate_inp",
    "position_embd",
    "token_types",
    "ssm_conv1d",
    "shortconv.conv",
    "indexer.proj",
    "altup_correct_coef",
    "altup_predict_coef",
    "time_mix_first",
    "time_mix_w1",
    "time_mix_w2",
    "time_mix_decay_w",
    "time_mix_lerp_fused",
    "ssm_a",
    "ssm_d",
)


def is_gguf(spec: ModelSpec) -> bool:
    """Whether a model's tensors go by ggml's names already."""
    return any(tensor.name == _EMBEDDING for tensor in spec.shared)


def to_gguf(spec: ModelSpec, *, splits_latents: bool = True) -> ModelSpec:
    """Return the model as a GGUF file of 16-bit weights would hold it; a model read from GGUF is returned as it is.

    `splits_latents` cuts a latent's up-projection into keys and values, as files since April 2025 (b5137) have it.
    """
    if is_gguf(spec):
        return spec
    architecture = _architecture(spec)
    made: dict[int, Layer] = {}
    layers = []
    for layer in spec.layers:
        if id(layer) not in made:
            made[id(layer)] = replace(
                layer,
                tensors=tuple(_layer_tensors(layer, architecture, splits_latents)),
                caches=_caches(layer, architecture),
            )
        layers.append(made[id(layer)])
    return replace(
        spec,
        model_type=architecture,
        layers=tuple(layers),
        shared=(*_shared_tensors(spec, architecture), *_rotary_factors(spec)),
        vocab_size=_CUT_VOCABULARIES.get((architecture, spec.vocab_size), spec.vocab_size),
        towers=(),
        mtp=(),
        layer_prefix="blk.",
        rotary=(),
        quantization=None,
        stored_bytes=None,
    )


def _architecture(spec: ModelSpec) -> str:
    name = gguf_architecture(spec.model_type)
    if spec.model_type == "nemotron_h" and any(layer.mlp and layer.mlp.num_experts for layer in spec.layers):
        return "nemotron_h_moe"
    if spec.model_type == "qwen2_audio":
        return "qwen2"
    return name


def _caches(layer: Layer, architecture: str) -> tuple[Cache, ...]:
    """What llama.cpp keeps: the whole context where it has no windows for an architecture (Mistral 0.1, Phi-3)."""
    if architecture in WINDOWED:
        return layer.caches
    return tuple(
        FullAttention(cache.num_kv_heads, cache.key_width, cache.value_width)
        if isinstance(cache, SlidingWindow)
        else cache
        for cache in layer.caches
    )


def _layer_tensors(layer: Layer, architecture: str, splits_latents: bool) -> Iterator[Tensor]:
    siblings = frozenset(tensor.name for tensor in layer.tensors)
    for tensor in layer.tensors:
        renamed = replace(tensor, name=layer_name(tensor.name, siblings))
        whole = renamed.name == "attn_kv_b.weight" and not splits_latents
        for part in (renamed,) if whole else _parts(renamed, layer, architecture):
            yield _stored(part)


def _parts(tensor: Tensor, layer: Layer, architecture: str) -> Iterable[Tensor]:
    """One weight, or what the converter makes of it."""
    base, _, suffix = tensor.name.rpartition(".")
    if base == "attn_kv_b" and suffix == "weight":
        return _latent_parts(tensor, layer)
    if base == "attn_qkv" and architecture in _SPLIT_QKV and layer.query_width:
        return _cut(tensor, _qkv_widths(tensor, layer), ("attn_q", "attn_k", "attn_v"))
    if base == "attn_qkv" and tensor.role is Role.STATE and layer.caches:
        return _delta_parts(tensor, layer)
    if base == "ffn_gate_up_exps" and architecture not in _FUSED_EXPERTS:
        half = tensor.shape[0] // 2
        return _cut(tensor, (half, half), ("ffn_gate_exps", "ffn_up_exps"))
    if base in ("ssm_conv1d", "shortconv.conv") and suffix == "weight":
        return (replace(tensor, shape=(tensor.shape[0], tensor.shape[-1])),)
    return (tensor,)


def _latent_parts(tensor: Tensor, layer: Layer) -> Iterable[Tensor]:
    """Keys transposed (their rows are the heads' widths), values as they are; one matrix per head."""
    latent = next((cache for cache in layer.caches if isinstance(cache, LatentAttention)), None)
    if latent is None:
        return (tensor,)
    nope = tensor.shape[0] // latent.num_heads - latent.expanded_value_width
    keys = (latent.num_heads * latent.latent_width, nope)
    values = (latent.num_heads * latent.expanded_value_width, latent.latent_width)
    return (
        replace(tensor, name="attn_k_b.weight", shape=keys),
        replace(tensor, name="attn_v_b.weight", shape=values),
    )


def _delta_parts(tensor: Tensor, layer: Layer) -> Iterable[Tensor]:
    """Qwen3-Next stores keys, queries, values and the gate in one matrix; ggml keeps the gate apart."""
    out = next((other for other in layer.tensors if other.name.endswith("linear_attn.out_proj.weight")), None)
    conv = next((other for other in layer.tensors if "conv1d" in other.name), None)
    if out is None or conv is None or tensor.shape[0] == conv.shape[0]:
        return (tensor,)
    return _cut(tensor, (conv.shape[0], tensor.shape[0] - conv.shape[0]), ("attn_qkv", "attn_gate"))


def _qkv_widths(tensor: Tensor, layer: Layer) -> tuple[int, int, int]:
    rest = (tensor.shape[0] - layer.query_width) // 2
    return layer.query_width, rest, rest


def _cut(tensor: Tensor, widths: tuple[int, ...], names: tuple[str, ...]) -> Iterable[Tensor]:
    suffix = tensor.name.rpartition(".")[2]
    for width, name in zip(widths, names, strict=True):
        yield replace(tensor, name=f"{name}.{suffix}", shape=(width, *tensor.shape[1:]))


def _shared_tensors(spec: ModelSpec, architecture: str) -> Iterator[Tensor]:
    rows = _CUT_VOCABULARIES.get((architecture, spec.vocab_size))
    for tensor in spec.shared:
        if rows and tensor.shape[0] == spec.vocab_size:  # rows without a token
            tensor = replace(tensor, shape=(rows, *tensor.shape[1:]))
        name = shared_name(tensor.name, is_encoder=architecture == "bert")
        if name == "position_embd.weight" and architecture == "bert":  # RoBERTa's begin after the padding
            tensor = replace(tensor, shape=(min(tensor.shape[0], spec.max_context_tokens), *tensor.shape[1:]))
        if name is not None:
            yield _stored(replace(tensor, name=name))


def _rotary_factors(spec: ModelSpec) -> Iterator[Tensor]:
    """The factors of every frequency: small, but they make operations wait for a copy when layers are on the host."""
    names = {"llama3": ("rope_freqs",), "longrope": ("rope_factors_long", "rope_factors_short")}
    for table in spec.rotary[:1]:
        for name in names.get(table.factors, ()):
            weight = Tensor(name=f"{name}.weight", shape=(table.width // 2,), role=Role.OTHER, is_buffer=True)
            yield replace(weight, dtype=DType.F32)


def _stored(tensor: Tensor) -> Tensor:
    """A tensor with the type that the converter gives it; None stands for the file's 16-bit type."""
    keeps = len([axis for axis in tensor.shape if axis > 1]) < 2 or not tensor.name.endswith(".weight")
    keeps = keeps or tensor.name.endswith("_norm.weight") or tensor.name.startswith(_FLOAT32_NAMES)
    return replace(tensor, dtype=DType.F32 if keeps else DType.F16, storage=None)
