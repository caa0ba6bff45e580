"""The tensors of a GGUF model as memplan's: role, cut and storage by ggml's names for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from memplan.domain.tensors import REPLICATED, Role, Shard, ShardKind, Storage, Tensor
from memplan.introspect.gguf import GgufTensor
from memplan.records import dataclass, replace

_EXPERT_NUMBER = re.compile(r"(ffn_(?:gate|up|down))\.(\d+)\.")
_STACKED = re.compile(r"_(?:ch)?exps\.")
_BUFFERS = ("rope_freqs.", "rope_factors_", "exp_probs_b.")  # stored and loaded, and no parameters
_SCALE_SUFFIXES = (".scale", ".input_scale")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """How many pieces tensor parallelism may cut a layer's projections into."""

    num_heads: int
    num_kv_heads: int


def make_tensors(stored: Mapping[str, GgufTensor], cuts: Cuts) -> tuple[Tensor, ...]:
    """Return the tensors of one layer, or those outside the layers, from what is stored under their relative names.

    Scales that stand beside a quantized weight become part of its storage.
    """
    made = {name: _tensor(name, tensor, count, cuts) for name, tensor, count in _numbered(stored)}
    for name in [name for name in made if name.endswith(_SCALE_SUFFIXES)]:
        weight = made.get(f"{name.rpartition('.')[0]}.weight")
        scale = made[name]
        if weight is None or scale.storage is not None or scale.dtype is None or scale.num_elements % weight.count:
            continue
        each_bytes = scale.num_elements // weight.count * scale.dtype.bits // 8
        made[weight.name] = replace(weight, storage=_with_scale(weight, each_bytes))
        del made[name]
    return tuple(made.values())


def _with_scale(weight: Tensor, scale_bytes: int) -> Storage:
    if weight.storage is not None:
        return replace(weight.storage, tensor_bytes=weight.storage.tensor_bytes + scale_bytes)
    bits = weight.dtype.bits if weight.dtype else 16
    return Storage(
        scheme="gguf:" + (weight.dtype.value if weight.dtype else "f16"), bits=bits, tensor_bytes=scale_bytes
    )


def _numbered(stored: Mapping[str, GgufTensor]) -> Iterable[tuple[str, GgufTensor, int]]:
    """Yield (name, one tensor, how many): stacked experts taken apart, experts stored one by one counted together."""
    single: dict[tuple[str, GgufTensor], int] = {}
    for name, tensor in stored.items():
        match = _EXPERT_NUMBER.match(name)
        if match:
            key = f"{match[1]}.*.{name[match.end() :]}", tensor
            single[key] = single.get(key, 0) + 1
        elif _STACKED.search(name) and len(tensor.shape) >= 2 and tensor.shape[0]:
            count, shape = tensor.shape[0], tensor.shape[1:]
            if tensor.type.tensor_bytes:
                yield name, tensor, 1
            else:
                yield name, GgufTensor(tensor.type, shape, tensor.size_bytes // count), count
        else:
            yield name, tensor, 1
    seen: set[str] = set()
    for (name, tensor), count in single.items():
        unique = name if name not in seen else f"{name}:{tensor.type.name}"
        seen.add(name)
        yield unique, tensor, count


def _tensor(name: str, tensor: GgufTensor, count: int, cuts: Cuts) -> Tensor:
    role, shard = _role_and_cut(name, tensor.shape, cuts)
    return Tensor(
        name=name,
        shape=tensor.shape,
        role=role,
        shard=shard,
        count=count,
        dtype=tensor.type.dtype,
        linear=len(tensor.shape) == 2 and role not in (Role.EMBEDDING, Role.POSITION, Role.NORM),
        storage=tensor.type.storage(),
        is_buffer=name.startswith(_BUFFERS),
    )


def _role_and_cut(name: str, shape: tuple[int, ...], cuts: Cuts) -> tuple[Role, Shard]:
    for pattern, role, cut in _ROLES:
        if pattern.search(name):
            return role, _shard(cut, shape, cuts)
    return Role.OTHER, REPLICATED


def _shard(cut: str, shape: tuple[int, ...], cuts: Cuts) -> Shard:
    """The cut of a weight, named by what it divides: heads, output or input channels, vocabulary rows, experts."""
    if cut == "heads" and cuts.num_heads:
        return Shard(ShardKind.SPLIT, cuts.num_heads)
    if cut == "kv_heads" and cuts.num_kv_heads:
        return Shard(ShardKind.KV_HEADS, cuts.num_kv_heads)
    if cut == "vocab" and shape:
        return Shard(ShardKind.VOCAB, shape[0])
    if cut in ("out", "out_expert") and shape:
        return Shard(ShardKind.EXPERTS if cut == "out_expert" else ShardKind.SPLIT, max(shape[0], 1))
    if cut in ("in", "in_expert") and len(shape) > 1:
        return Shard(ShardKind.EXPERTS if cut == "in_expert" else ShardKind.SPLIT, max(shape[-1], 1))
    return REPLICATED


# The first pattern that is found in a tensor's relative name decides. Source: LLM_TENSOR_NAMES of llama.cpp's
# llama-arch.cpp, as vendored by llama-cpp-python 0.3.36.
_ROLES: tuple[tuple[re.Pattern[str], Role, str], ...] = tuple(
    (re.compile(pattern), role, cut)
    for pattern, role, cut in (
        (r"^nextn\.", Role.MTP, ""),
        (r"^per_layer_token_embd|^token_types", Role.EMBEDDING, ""),
        (r"^token_embd\.", Role.EMBEDDING, "vocab"),
        (r"^position_embd", Role.POSITION, ""),
        (r"^output\.", Role.LM_HEAD, "vocab"),
        (r"^indexer", Role.INDEXER, ""),
        (r"^ssm_|^shortconv\.|^time_mix", Role.STATE, ""),
        (r"norm", Role.NORM, ""),
        (r"^(cross_)?attn_(q|qkv|gate|q_b|kv_b|k_b|v_b)\.", Role.ATTENTION, "heads"),
        (r"^(cross_)?attn_(k|v)\.", Role.ATTENTION, "kv_heads"),
        (r"^(cross_)?attn_(output|o)\.weight", Role.ATTENTION, "heads"),
        (r"^attn_sinks", Role.ATTENTION, "heads"),
        (r"^(cross_)?attn_|^vis_attn", Role.ATTENTION, ""),
        (r"^ffn_gate_inp_shexp", Role.SHARED_EXPERT, ""),
        (r"^ffn_gate_inp|^exp_probs_b|^ffn_gate_tid2eid", Role.ROUTER, ""),
        (r"^ffn_down_(ch)?exps\.|^ffn_down\.\*", Role.EXPERT, "in_expert"),
        (r"_(ch)?exps\.|^ffn_(gate|up)\.\*", Role.EXPERT, "out_expert"),
        (r"^ffn_down_shexp\.weight", Role.SHARED_EXPERT, "in"),
        (r"_shexp\.", Role.SHARED_EXPERT, "out"),
        (r"^(ffn|vis)_down\.weight", Role.MLP, "in"),
        (r"^(ffn|vis)_(gate|up)\.", Role.MLP, "out"),
        (r"^ffn|^channel_mix", Role.MLP, ""),
    )
)
