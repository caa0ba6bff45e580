"""Models that no config is at hand for, rebuilt from what a log prints: the MLP's width follows from the parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from serving_records import TooLittle

from memplan.domain.attention import Cache, FullAttention, NoCache, SharedKV, SlidingWindow
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, Mlp, ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect import blocks
from memplan.introspect.blocks import Heads

Record = Mapping[str, object]

_TIED = frozenset({"gemma", "gemma2", "gemma3", "gemma3n", "command-r", "cohere2", "bitnet-25", "bitnet"})
_FUSED = frozenset({"phi3", "codeshell", "chatglm", "starcoder", "falcon", "gpt2", "mpt", "bloom", "gptneox"})
_UNGATED = frozenset(
    {"codeshell", "starcoder", "starcoder2", "gpt2", "falcon", "mpt", "bloom", "gptneox", "phi2", "nemotron"}
)


# What logs of ik_llama.cpp leave out, for models without a config at hand: hidden size and vocabulary.
_LEFT_OUT = {
    ("chatglm", 61): {"n_embd": 6144, "n_vocab": 151552, "num_heads": 48},  # GLM-Z1-Rumination-32B-0414
    ("bitnet-25", 30): {"n_embd": 2560, "n_vocab": 128256, "num_heads": 20},  # bitnet-b1.58-2B-4T
}


def rebuild(record: Record) -> ModelSpec:
    """Return a dense decoder of the printed shape.

    Raises: TooLittle when the log does not say enough, UnsupportedModel when the model is not dense.
    """
    architecture = str(record.get("arch") or "")
    known = _LEFT_OUT.get((architecture, int(str(record.get("n_layer") or 0))), {})
    record = {**known, **{key: value for key, value in record.items() if value is not None}}
    if architecture == "gemma3n":
        return _gemma3n(record)
    if architecture == "deci":
        return _deci(record)
    layers, hidden, gqa = (_whole(record, key) for key in ("n_layer", "n_embd", "n_embd_k_gqa"))
    vocabulary = _whole(record, "n_vocab")
    kv_heads = int(str(record.get("n_head_kv")))
    width = gqa // kv_heads
    heads = Heads(
        hidden=hidden,
        num_heads=int(str(record.get("num_heads") or max(hidden // width, 1))),
        num_kv_heads=kv_heads,
        key_width=width,
        value_width=width,
    )
    tied = architecture in _TIED
    intermediate = _intermediate(record, heads, layers, vocabulary, tied, gated=architecture not in _UNGATED)
    return _spec(record, heads, (intermediate,) * layers, vocabulary, tied=tied)


def parameters_of(record: Record) -> float | None:
    """`7.24 B`, `1.027 T`, `65.02 M` or `292,80 K` as a number."""
    text = str(record.get("model_params") or "").replace(",", ".").split()
    if len(text) != 2:
        return None
    return float(text[0]) * {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[text[1]]


def _whole(record: Record, key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int):
        raise TooLittle(f"the log does not print `{key}`, and no known model has its other numbers")
    return value


def _intermediate(record: Record, heads: Heads, layers: int, vocabulary: int, tied: bool, *, gated: bool) -> int:
    """The MLP width that makes up the parameters; 8/3 of the hidden size where the log does not print them."""
    parameters = parameters_of(record)
    hidden = heads.hidden
    if parameters is None:
        size = _size_bytes(record)
        parameters = size / 4 if size and "F32" in str(record.get("file_type")) else None
    if parameters is None:
        return hidden * 8 // 3
    outside = vocabulary * hidden * (1 if tied else 2)
    attention = 2 * hidden * heads.query_width + 2 * hidden * heads.num_kv_heads * heads.key_width
    left = parameters - outside - layers * (attention + 2 * hidden)
    width = left / layers / hidden / (3 if gated else 2)
    step = 32 if width > 512 else 4
    return max(step, round(width / step) * step)


def _size_bytes(record: Record) -> float | None:
    text = str(record.get("model_size") or "").replace(",", ".").split()
    return float(text[0]) * {"MiB": 2**20, "GiB": 2**30}[text[1]] if len(text) > 1 else None


def _spec(record: Record, heads: Heads, widths: tuple[int, ...], vocabulary: int, *, tied: bool) -> ModelSpec:
    architecture = str(record["arch"])
    made: dict[int, Layer] = {}
    layers = []
    for width in widths:
        if width not in made:
            made[width] = _layer(architecture, heads, width)
        layers.append(made[width])
    return _model(record, heads, tuple(layers), vocabulary, tied=tied)


def _layer(architecture: str, heads: Heads, intermediate: int) -> Layer:
    gated = architecture not in _UNGATED
    names = ("ffn_gate", "ffn_up", "ffn_down") if gated else ("ffn_up", "ffn_down")
    projections = (
        ("attn_qkv", "attn_output") if architecture in _FUSED else ("attn_q", "attn_k", "attn_v", "attn_output")
    )
    tensors = (
        *blocks.attention(heads, prefix="", names=projections),
        *blocks.mlp(heads.hidden, intermediate, prefix="", names=names),
        *blocks.norms(("attn_norm", "ffn_norm"), heads.hidden),
    )
    return Layer(
        kind="dense",
        caches=(heads.full(),),
        tensors=tuple(_stored(tensor) for tensor in tensors),
        query_width=heads.query_width,
        num_heads=heads.num_heads,
        mlp=Mlp(intermediate=intermediate, gated=gated),
    )


def _stored(tensor: Tensor) -> Tensor:
    plain = len(tensor.shape) > 1 and not tensor.name.endswith("_norm.weight")
    return replace(tensor, dtype=DType.F16 if plain else DType.F32)


def _model(record: Record, heads: Heads, layers: tuple[Layer, ...], vocabulary: int, *, tied: bool) -> ModelSpec:
    hidden = heads.hidden
    embedding = Tensor(name="token_embd.weight", shape=(vocabulary, hidden), role=Role.EMBEDDING)
    head = Tensor(name="output.weight", shape=(vocabulary, hidden), role=Role.LM_HEAD, linear=True)
    norm = Tensor(name="output_norm.weight", shape=(hidden,), role=Role.NORM)
    shared = (embedding, norm) if tied else (embedding, norm, head)
    return ModelSpec(
        name=str(record.get("model_name")),
        model_type=str(record["arch"]),
        architecture=str(record["arch"]),
        dtype=DType.F16,
        hidden_size=hidden,
        vocab_size=vocabulary,
        num_heads=heads.num_heads,
        max_context_tokens=1 << 20,
        layers=layers,
        shared=tuple(_stored(tensor) for tensor in shared),
        layer_prefix="blk.",
        tied_embeddings=tied,
    )


def _gemma3n(record: Record) -> ModelSpec:
    """Gemma 3n E2B and E4B: 20 and 30 layers' worth of blocks with per-layer embeddings and shared caches.

    Source: google/gemma-3n-E4B-it's config (35 layers, 2048 hidden, 16384 intermediate, 8 heads of 256 with 2 for keys,
    per-layer embeddings of 256, caches of their own in the first 20 layers, every fifth of which is full).
    """
    layers, vocabulary = _whole(record, "n_layer"), _whole(record, "n_vocab")
    hidden, inputs = 2048, 256
    heads = Heads(hidden=hidden, num_heads=8, num_kv_heads=2, key_width=256, value_width=256)
    width = 16384 if layers > 30 else 8192
    extra = (
        *blocks.norms(("attn_q_norm", "attn_k_norm"), 256),
        *blocks.norms(("post_attention_norm", "post_ffw_norm", "laurel_post_norm", "post_norm"), hidden),
        *blocks.replicated("inp_gate", inputs, hidden, Role.OTHER),
        *blocks.replicated("proj", hidden, inputs, Role.OTHER),
        *blocks.replicated("laurel_l", 64, hidden, Role.OTHER),
        *blocks.replicated("laurel_r", hidden, 64, Role.OTHER),
    )
    base = _layer("gemma3n", heads, width)
    tensors = (*base.tensors, *(_stored(tensor) for tensor in extra))
    made: dict[str, Layer] = {}
    stack = []
    owners = 20
    for index in range(layers):
        full = index % 5 == 4
        cache: Cache = SharedKV(owners - (1 if full else 2))
        if index < owners:
            cache = heads.full() if full else SlidingWindow(2, 256, 256, 512)
        key = repr(cache)
        made.setdefault(key, replace(base, tensors=tensors, caches=(cache,)))
        stack.append(made[key])
    spec = _model(record, heads, tuple(stack), vocabulary, tied=True)
    per_layer = Tensor(name="per_layer_token_embd.weight", shape=(vocabulary, layers * inputs), role=Role.EMBEDDING)
    project = Tensor(name="per_layer_model_proj.weight", shape=(layers * inputs, hidden), role=Role.OTHER)
    return replace(spec, shared=(*spec.shared, _stored(per_layer), _stored(project)))


# Llama-3.1-Nemotron-Ultra-253B: MLP widths of its blocks as multiples of the hidden size; 0 for a block without one.
def _deci(record: Record) -> ModelSpec:
    """A pruned Llama: the log lists the key-value heads of every layer; the MLPs share what the parameters leave."""
    listed = record.get("n_head_kv")
    kv_heads = json.loads(listed) if isinstance(listed, str) and listed.startswith("[") else listed
    if not isinstance(kv_heads, list):
        raise UnsupportedModel("the log does not list the heads of a pruned model")
    hidden = int(record["n_embd"]) if isinstance(record.get("n_embd"), int) else 16384
    vocabulary = int(record["n_vocab"]) if isinstance(record.get("n_vocab"), int) else 128256
    heads = Heads(hidden=hidden, num_heads=hidden // 128, num_kv_heads=8, key_width=128, value_width=128)
    attending = sum(1 for number in kv_heads if number)
    parameters = parameters_of(record) or 0.0
    attention = 2 * hidden * heads.query_width + 2 * hidden * 8 * 128
    left = parameters - 2 * vocabulary * hidden - attending * attention
    width = round(left / len(kv_heads) / hidden / 3 / 256) * 256
    full = _layer("llama", heads, width)
    bare = replace(
        full,
        caches=(NoCache(),),
        tensors=tuple(tensor for tensor in full.tensors if not tensor.name.startswith("attn_")),
        query_width=0,
        num_heads=0,
    )
    return _model(record, heads, tuple(full if number else bare for number in kv_heads), vocabulary, tied=False)


__all__ = ["FullAttention", "parameters_of", "rebuild"]
