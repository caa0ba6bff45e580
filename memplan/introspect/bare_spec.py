"""A ModelSpec from a checkpoint without a config: exact weights, and a cache as far as the shapes show it.

The widths of key and value projections give the bytes of a cache whatever the heads are; windows, and how a fused or
unusual projection divides, they do not show. A note says what was taken from where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from memplan.domain.attention import Cache, FullAttention, LatentAttention, NoCache
from memplan.domain.dtypes import DType
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.tensors import REPLICATED, Role, Shard, ShardKind, Tensor
from memplan.introspect.header_names import Group, collapse
from memplan.introspect.inventory import Inventory, StoredTensor, stored_dtype

_LAYER = re.compile(r"(?P<prefix>(?:.*\.)?(?:layers|h|blocks|block|layer)\.)(?P<number>\d{1,4})\.(?P<name>.+)")
_KEY = re.compile(r"(?:^|[._])(?:k_proj|wk|key|k)\.(?:weight|qweight|weight_packed)$")
_VALUE = re.compile(r"(?:^|[._])(?:v_proj|wv|value|v)\.(?:weight|qweight|weight_packed)$")
_FUSED = re.compile(r"(?:^|[._])(?:qkv_proj|query_key_value|Wqkv|W_pack|qkv)\.weight$")
_OUT = re.compile(r"(?:^|[._])(?:o_proj|out_proj|dense|wo)\.weight$")
_LATENT = "kv_a_proj_with_mqa.weight"
_HEAD_NORMS = ("k_norm.weight", "q_norm.weight")
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
)
_HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
_USUAL_HEAD_WIDTHS = (128, 64, 96, 80, 256)
_DEFAULT_CONTEXT_TOKENS = 4096
_ROLES = (
    (r"embed_tokens|wte|word_embeddings|tok_embeddings|embed_in", Role.EMBEDDING),
    (r"lm_head|embed_out", Role.LM_HEAD),
    (r"vision|visual|image", Role.VISION),
    (r"audio|speech", Role.AUDIO),
    (r"experts", Role.EXPERT),
    (r"norm|ln_|layernorm", Role.NORM),
    (r"router|mlp\.gate\.", Role.ROUTER),
    (r"attn|attention|[qkvo]_proj", Role.ATTENTION),
    (r"mlp|ffn|feed_forward|gate_proj|up_proj|down_proj|fc[12]", Role.MLP),
    (r"mamba|ssm|conv1d|mixer", Role.STATE),
)


def bare_spec(inventory: Inventory, name: str) -> ModelSpec:
    """Return the ModelSpec of a checkpoint that nothing describes but its headers."""
    prefix, numbered, rest = _by_layer(inventory.tensors)
    layers = _layers(numbered)
    embedding = _first(rest, _EMBEDDINGS)
    head = _first(rest, _HEADS)
    vocab, hidden = embedding.shape if embedding is not None and len(embedding.shape) == 2 else (0, 0)
    heads = max((layer.num_heads for layer in layers), default=0)
    knows_cache = bool(layers) and not all(isinstance(cache, NoCache) for layer in layers for cache in layer.caches)
    return ModelSpec(
        name=name,
        model_type="",
        architecture="",
        dtype=_main_dtype(inventory),
        hidden_size=max(hidden, 1),
        vocab_size=max(vocab, 1),
        num_heads=max(heads, 1),
        max_context_tokens=_DEFAULT_CONTEXT_TOKENS,
        layers=layers,
        layer_prefix=prefix,
        shared=tuple(_tensor(name, group, heads=0, kv_heads=0) for name, group in collapse(rest).items()),
        tied_embeddings=embedding is not None and head is None,
        weights_source="headers",
        stored_bytes=inventory.total_bytes,
        is_generative=knows_cache and embedding is not None,
        notes=(*inventory.notes, *_notes(knows_cache)),
    )


def _by_layer(
    tensors: Mapping[str, StoredTensor],
) -> tuple[str, dict[int, dict[str, StoredTensor]], dict[str, StoredTensor]]:
    """Split tensors into numbered layers and the rest. The prefix with most bytes is the decoder's."""
    matched = {name: match for name in tensors if (match := _LAYER.fullmatch(name))}
    sizes: dict[str, int] = {}
    for name, match in matched.items():
        sizes[match["prefix"]] = sizes.get(match["prefix"], 0) + tensors[name].size_bytes
    prefix = max(sizes, key=lambda each: sizes[each], default="")
    layers: dict[int, dict[str, StoredTensor]] = {}
    rest: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name in matched and matched[name]["prefix"] == prefix:
            layers.setdefault(int(matched[name]["number"]), {})[matched[name]["name"]] = tensor
        else:
            rest[name] = tensor
    return prefix, layers, rest


def _layers(numbered: Mapping[int, Mapping[str, StoredTensor]]) -> tuple[Layer, ...]:
    made: dict[object, Layer] = {}
    layers: list[Layer] = []
    for index in sorted(numbered):
        own = numbered[index]
        key = tuple(own.items())
        if key not in made:
            cache, heads, kv_heads = _cache(own)
            tensors = tuple(_tensor(name, group, heads, kv_heads) for name, group in collapse(own).items())
            is_routed = any(tensor.role is Role.EXPERT for tensor in tensors)
            query = next((each.shape[0] for name, each in own.items() if re.search(r"q_proj\.weight$", name)), 0)
            kind = "moe" if is_routed else "dense"
            made[key] = Layer(kind=kind, caches=(cache,), tensors=tensors, query_width=query, num_heads=heads)
        layers.append(made[key])
    return tuple(layers)


def _cache(own: Mapping[str, StoredTensor]) -> tuple[Cache, int, int]:
    """What a layer keeps, its query heads and its key-value heads, by the shapes of its projections."""
    latent = next((tensor for name, tensor in own.items() if name.endswith(_LATENT)), None)
    norm = next((tensor for name, tensor in own.items() if name.endswith("kv_a_layernorm.weight")), None)
    if latent is not None and norm is not None and len(latent.shape) == 2 and latent.shape[0] > norm.num_elements:
        rope = latent.shape[0] - norm.num_elements
        return LatentAttention(norm.num_elements, rope, 1, norm.num_elements + rope, norm.num_elements), 1, 1
    key, value = _out_width(own, _KEY), _out_width(own, _VALUE)
    query = next((_rows(each) for name, each in own.items() if re.search(r"q_proj\.(?:weight|qweight)$", name)), 0)
    fused, out = _matrix(own, _FUSED), _matrix(own, _OUT)
    if not key and fused and out and fused.shape[0] > out.shape[1]:
        query = out.shape[1]
        key = value = (fused.shape[0] - query) // 2
    if not key:
        return NoCache(), 0, 0
    width = _head_width(own, key)
    return FullAttention(key // width, width, (value or key) * width // key), max(query // width, 1), key // width


def _head_width(own: Mapping[str, StoredTensor], key_width: int) -> int:
    """Elements of one head: a norm over heads shows it, else the first usual width that divides the projection."""
    norm = next((tensor.num_elements for name, tensor in own.items() if name.endswith(_HEAD_NORMS)), 0)
    candidates = (norm, *_USUAL_HEAD_WIDTHS) if 0 < norm < key_width else _USUAL_HEAD_WIDTHS
    return next((width for width in candidates if width and key_width % width == 0), key_width)


def _matrix(own: Mapping[str, StoredTensor], pattern: re.Pattern[str]) -> StoredTensor | None:
    return next((each for name, each in own.items() if pattern.search(name) and len(each.shape) == 2), None)


def _out_width(own: Mapping[str, StoredTensor], pattern: re.Pattern[str]) -> int:
    return next((_rows(each) for name, each in own.items() if pattern.search(name)), 0)


def _rows(tensor: StoredTensor) -> int:
    """Outputs of a projection; GPTQ's packed weight has them along the second axis."""
    if len(tensor.shape) != 2:
        return 0
    return tensor.shape[1] if tensor.dtype == "I32" else tensor.shape[0]


def _tensor(name: str, group: Group, heads: int, kv_heads: int) -> Tensor:
    role = next((role for pattern, role in _ROLES if re.search(pattern, name)), Role.OTHER)
    shard = REPLICATED
    if role is Role.ATTENTION and heads and len(group.first.shape) == 2:
        is_kv = _KEY.search(name) or _VALUE.search(name)
        shard = Shard(ShardKind.KV_HEADS, kv_heads) if is_kv else Shard(ShardKind.SPLIT, heads)
    elif role in (Role.MLP, Role.EXPERT) and len(group.first.shape) == 2:
        width = max(group.first.shape)
        shard = Shard(ShardKind.SPLIT if role is Role.MLP else ShardKind.EXPERTS, max(width, 1))
    elif role in (Role.EMBEDDING, Role.LM_HEAD) and group.first.shape:
        shard = Shard(ShardKind.VOCAB, max(group.first.shape[0], 1))
    return Tensor(
        name=name, shape=group.first.shape, role=role, shard=shard, count=group.count, dtype=stored_dtype(group.first)
    )


def _first(rest: Mapping[str, StoredTensor], endings: tuple[str, ...]) -> StoredTensor | None:
    return next((tensor for name, tensor in rest.items() if name.endswith(endings)), None)


def _main_dtype(inventory: Inventory) -> DType:
    sizes: dict[DType, int] = {}
    for tensor in inventory.tensors.values():
        dtype = stored_dtype(tensor)
        if dtype.is_float:
            sizes[dtype] = sizes.get(dtype, 0) + tensor.size_bytes
    return max(sizes, key=lambda each: sizes[each], default=DType.F16)


def _notes(knows_cache: bool) -> tuple[str, ...]:
    weights = "no config.json: the weights are exact, the roles of tensors go by their names"
    if not knows_cache:
        return (weights, "no config.json: what a sequence keeps is not known, so no cache is counted")
    context = f"its longest context is not known ({_DEFAULT_CONTEXT_TOKENS} is assumed)"
    return (weights, f"no config.json: the cache goes by the shapes of key and value projections; {context}")
