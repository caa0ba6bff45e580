"""From the header of a GGUF file to a ModelSpec: exact bytes per tensor, caches by the file's own metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping

from memplan.domain.attention import Cache, LatentAttention, LinearState, NoCache
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, Mlp, ModelSpec, Tower
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect.bytesource import show
from memplan.introspect.ggml_types import FILE_TYPES
from memplan.introspect.gguf import Gguf, GgufTensor
from memplan.introspect.gguf_caches import ENCODERS, KNOWN, head_widths, layer_caches
from memplan.introspect.gguf_keys import Keys
from memplan.introspect.gguf_tensors import Cuts, make_tensors

_BLOCK = re.compile(r"((?:enc\.|dec\.)?blk\.)(\d{1,5})\.(.+)")
_STATE_NAMES = ("ssm_", "shortconv.", "time_mix")
_GUESSED = 1024  # the bit of general.file_type that says that llama.cpp guessed it
_NOT_MODELS = {
    "adapter": ("a LoRA adapter", "name the model that it adapts"),
    "mmproj": ("a vision or audio projector", "name the language model's own .gguf"),
    "imatrix": ("an importance matrix", "name the model's own .gguf"),
}
_FLOATS = {"f32": DType.F32, "f16": DType.F16, "bf16": DType.BF16}


def gguf_to_spec(gguf: Gguf, name: str) -> ModelSpec:
    """Return the ModelSpec of a GGUF model.

    Raises: UnsupportedModel when the file holds no language model, or lacks a key that decides a size.
    """
    keys = Keys(gguf.metadata)
    _check_model(gguf, keys)
    prefix = {"t5": "dec.blk.", "t5encoder": "enc.blk."}.get(keys.architecture, "blk.")
    blocks, rest = _by_block(gguf.tensors, prefix)
    stored_layers = keys.whole("decoder_block_count", keys.num_layers()) if prefix == "dec.blk." else keys.num_layers()
    num_layers = stored_layers - min(keys.whole("nextn_predict_layers", 0), stored_layers - 1)
    if num_layers > len(blocks) or any(index not in blocks for index in range(num_layers)):
        absent = next(index for index in range(num_layers) if index not in blocks)
        raise UnsupportedModel(f"the GGUF file has no tensors of layer {absent} of {num_layers}: `{gguf.name}`")
    caches = layer_caches(keys, num_layers)
    layers = _layers(keys, blocks, caches, num_layers)
    mtp = {f"{prefix}{index}.{rel}": t for index in blocks if index >= num_layers for rel, t in blocks[index].items()}
    encoder = {full: tensor for full, tensor in rest.items() if full.startswith("enc.")}
    shared = make_tensors(
        {full: tensor for full, tensor in rest.items() if full not in encoder}, Cuts(num_heads=0, num_kv_heads=0)
    )
    file_type = _file_type(gguf)
    hidden = keys.whole("embedding_length", minimum=1)
    return ModelSpec(
        name=name,
        model_type=keys.architecture,
        architecture=keys.architecture,
        dtype=_FLOATS.get(file_type, DType.F16),
        hidden_size=hidden,
        vocab_size=_vocab_size(keys, gguf),
        num_heads=max(layer.num_heads for layer in layers),
        max_context_tokens=keys.whole("context_length", 2048, minimum=1),
        layers=layers,
        shared=shared,
        layer_prefix=prefix,
        towers=(Tower(role=Role.ENCODER, tensors=_as(Role.ENCODER, encoder)),) if encoder else (),
        mtp=_as(Role.MTP, mtp),
        tied_embeddings="output.weight" not in gguf.tensors and "token_embd.weight" in gguf.tensors,
        quantization=None if file_type in _FLOATS else f"gguf:{file_type}",
        weights_source="headers",
        stored_bytes=gguf.tensor_bytes,
        is_generative=keys.architecture not in ENCODERS,
        source=gguf.name,
        notes=_notes(gguf, keys, layers),
    )


def _check_model(gguf: Gguf, keys: Keys) -> None:
    kind = keys.text("general.type", "model")
    if keys.architecture == "clip":
        kind = "mmproj"
    if kind in _NOT_MODELS:
        what, hint = _NOT_MODELS[kind]
        raise UnsupportedModel(f"not a language model but {what}: `{gguf.name}`", hint=hint)
    if not gguf.tensors:
        raise UnsupportedModel(f"a GGUF file without tensors: `{gguf.name}`", hint="it holds a vocabulary only")


def _by_block(
    tensors: Mapping[str, GgufTensor], prefix: str
) -> tuple[dict[int, dict[str, GgufTensor]], dict[str, GgufTensor]]:
    """Return the tensors of each layer by relative name, and the rest by full name."""
    blocks: dict[int, dict[str, GgufTensor]] = {}
    rest: dict[str, GgufTensor] = {}
    for name, tensor in tensors.items():
        match = _BLOCK.fullmatch(name)
        if match and match[1] == prefix:
            blocks.setdefault(int(match[2]), {})[match[3]] = tensor
        else:
            rest[name] = tensor
    return blocks, rest


def _layers(
    keys: Keys, blocks: Mapping[int, Mapping[str, GgufTensor]], caches: tuple[tuple[Cache, ...], ...], num_layers: int
) -> tuple[Layer, ...]:
    heads = keys.per_layer("attention.head_count", num_layers, 0)
    experts = keys.per_layer("expert_used_count", num_layers, 0)
    kv_heads = keys.per_layer("attention.head_count_kv", num_layers, 0)
    made: dict[object, Layer] = {}
    layers: list[Layer] = []
    for index in range(num_layers):
        stored = blocks[index]
        key = (tuple(stored.items()), caches[index], heads[index], experts[index])
        if key not in made:
            tensors = make_tensors(stored, Cuts(num_heads=heads[index], num_kv_heads=kv_heads[index]))
            kept = _kept_caches(keys, caches[index], stored)
            made[key] = _layer(keys, tensors, kept, heads[index], experts[index], num_layers)
        layers.append(made[key])
    return tuple(layers)


def _kept_caches(keys: Keys, caches: tuple[Cache, ...], stored: Mapping[str, GgufTensor]) -> tuple[Cache, ...]:
    """The caches whose mixer the layer has: metadata of hybrid models does not always tell an MLP from a mixer."""
    has_state = any(name.startswith(_STATE_NAMES) for name in stored) or keys.architecture == "minimax-01"
    has_attention = any(name.startswith(("attn_q", "attn_k")) for name in stored)
    kept = tuple(cache for cache in caches if (has_state if isinstance(cache, LinearState) else has_attention))
    return kept or (NoCache(),)


def _layer(
    keys: Keys, tensors: tuple[Tensor, ...], caches: tuple[Cache, ...], heads: int, experts_used: int, num_layers: int
) -> Layer:
    mlp = _mlp(tensors, experts_used)
    attends = any(tensor.role is Role.ATTENTION for tensor in tensors) and heads > 0
    state = next((cache for cache in caches if isinstance(cache, LinearState)), None)
    latent = next((cache for cache in caches if isinstance(cache, LatentAttention)), None)
    key_width = latent.expanded_key_width if latent else head_widths(keys, False, num_layers)[0]
    if state is not None and len(caches) == 1:
        attends = False
    kind = state.kind if state is not None else "moe" if mlp and mlp.num_experts else "dense"
    return Layer(
        kind=kind,
        caches=caches,
        tensors=tensors,
        query_width=heads * key_width if attends else 0,
        num_heads=heads if attends else 0,
        mlp=mlp,
    )


def _mlp(tensors: tuple[Tensor, ...], experts_used: int) -> Mlp | None:
    """The feed-forward shape, from the down projections: their input is the intermediate width."""
    down = _find(tensors, "ffn_down.weight")
    experts = _find(tensors, "ffn_down_exps.weight") or _find(tensors, "ffn_down.*.weight")
    shared = _find(tensors, "ffn_down_shexp.weight")
    always = sum(tensor.shape[-1] for tensor in (shared, down) if tensor is not None and tensor.shape)
    if experts is not None and experts.shape:
        gated = any(tensor.name.startswith(("ffn_gate_exps", "ffn_gate_up_exps", "ffn_gate.*")) for tensor in tensors)
        return Mlp(
            intermediate=experts.shape[-1],
            gated=gated,
            num_experts=experts.count,
            experts_per_token=min(experts_used or 1, experts.count),
            shared_intermediate=always,
        )
    if down is None or not down.shape:
        return None
    up = _find(tensors, "ffn_up.weight")
    fused = up is not None and up.shape[0] == 2 * down.shape[-1]
    return Mlp(intermediate=down.shape[-1], gated=fused or _find(tensors, "ffn_gate.weight") is not None)


def _find(tensors: tuple[Tensor, ...], name: str) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor.name == name), None)


def _as(role: Role, stored: Mapping[str, GgufTensor]) -> tuple[Tensor, ...]:
    """Tensors under their full names, all of one role and none cut."""
    return tuple(
        Tensor(name=name, shape=tensor.shape, role=role, dtype=tensor.type.dtype, storage=tensor.type.storage())
        for name, tensor in stored.items()
    )


def _vocab_size(keys: Keys, gguf: Gguf) -> int:
    """Rows of the embedding, which is what logits are made of; else what the metadata counts."""
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2 and embedding.shape[0]:
        return embedding.shape[0]
    return keys.whole("vocab_size", keys.items("tokenizer.ggml.tokens") or 0, minimum=1)


def _file_type(gguf: Gguf) -> str:
    """The name of the file's mix of types; where it does not say, the type that holds most bytes."""
    number = gguf.metadata.get("general.file_type")
    if isinstance(number, int) and number & ~_GUESSED in FILE_TYPES:
        return FILE_TYPES[number & ~_GUESSED]
    by_type: dict[str, int] = {}
    for tensor in gguf.tensors.values():
        by_type[tensor.type.name] = by_type.get(tensor.type.name, 0) + tensor.size_bytes
    return max(by_type, key=lambda name: by_type[name])


def _notes(gguf: Gguf, keys: Keys, layers: tuple[Layer, ...]) -> tuple[str, ...]:
    notes = []
    if keys.architecture not in KNOWN:
        notes.append(f"the architecture `{show(keys.architecture)}` is read by its standard keys; check its cache")
    if keys.has("attention.kv_lora_rank") and not keys.has("attention.key_length_mla"):
        notes.append("this file predates latent attention in llama.cpp: keys and values are cached expanded")
    if keys.architecture == "t5":
        notes.append("the encoder's output for cross attention is not part of the cache")
    if "general.file_type" not in gguf.metadata:
        notes.append("the file does not name its type: the one that holds most bytes is given")
    if len(gguf.files) > 1:
        notes.append(f"a split model of {len(gguf.files)} files")
    return tuple(notes)
