"""What a transformers model keeps for a sequence, seen by running it on a few tokens of the meta device.

Its own cache object is looked at afterwards: keys and values with their heads and widths, windows, convolution and
recurrent states. Where a model's code cannot run on meta tensors, its config's usual attributes are taken, with a note.

Source: transformers 5.23 `cache_utils.py` (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer, DummyLayer).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Literal

from memplan.domain.attention import (
    Cache,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LinearState,
    NoCache,
    SharedKV,
    SlidingWindow,
)
from memplan.domain.dtypes import DType
from memplan.records import dataclass

Kept = tuple[Cache, ...]
_NUM_TOKENS = 5
_FLOATS = {"float32": DType.F32, "bfloat16": DType.BF16, "float16": DType.F16}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCaches:
    """One entry per layer, whether anything is kept at all, and what a person should know."""

    layers: tuple[Kept, ...]
    grows: bool
    notes: tuple[str, ...] = ()


def kept_caches(torch: Any, model: Any, config: Any, layers: Sequence[Mapping[str, Any]]) -> KeptCaches:
    """Return what each layer keeps; `layers` are the parameters of each."""
    try:
        with torch.no_grad():
            tokens = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device="meta")
            answer = model(input_ids=tokens, use_cache=True)
        cache = getattr(answer, "past_key_values", None) or getattr(answer, "cache_params", None)
        entries = list(getattr(cache, "layers", None) or [])
    except Exception:
        entries = []
    if not entries:
        return _by_attributes(config, layers)
    kept: list[Kept] = []
    silent = 0
    for index in range(len(layers)):
        own = _entry(entries[index], config, layers[index]) if index < len(entries) else ()
        if not own and any("q_proj" in name for name in layers[index]):  # it attends, and keeps nothing of its own
            own = (SharedKV(_owner(kept, index, config)),)
        silent += not own and any("attn" in name or "A_log" in name for name in layers[index])
        kept.append(own or (NoCache(),))
    notes = (f"{silent} layers keep nothing that their cache object shows",) if silent else ()
    if any(hasattr(entry, "compressed_kv") for entry in entries):
        notes = (*notes, "compressed keys and values are not counted, nor are those that wait to be compressed")
    return KeptCaches(layers=tuple(kept), grows=True, notes=notes)


def attribute(config: Any, name: str) -> Any:
    """An attribute of a config; None when it has none, or none that holds for all layers."""
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def _entry(entry: Any, config: Any, own: Mapping[str, Any]) -> Kept:
    caches: list[Cache] = []
    keys, values = getattr(entry, "keys", None), getattr(entry, "values", None)
    if keys is not None and values is not None and len(keys.shape) == 4:
        caches.append(_attention(entry, keys.shape, values.shape, config))
    indexer = getattr(entry, "indexer_keys", None)
    if indexer is not None:
        caches.append(IndexerKeys(int(indexer.shape[-1])))
    conv = _first(getattr(entry, "conv_states", None))
    recurrent = _first(getattr(entry, "recurrent_states", None))
    if conv is not None or recurrent is not None:
        caches.append(_state(conv, recurrent, own, config))
    return tuple(caches)


def _attention(entry: Any, keys: Sequence[int], values: Sequence[int], config: Any) -> Cache:
    heads, key_width, value_width = int(keys[1]), int(keys[-1]), int(values[-1])
    latent = attribute(config, "kv_lora_rank")
    if latent and heads == 1 and key_width == latent:
        num_heads = int(getattr(config, "num_attention_heads", 1))
        expanded = int(getattr(config, "qk_nope_head_dim", 0) or 0) + value_width
        return LatentAttention(
            key_width, value_width, num_heads, expanded, int(getattr(config, "v_head_dim", 0) or expanded)
        )
    window = getattr(entry, "sliding_window", None)
    if isinstance(window, int) and window > 0:
        return SlidingWindow(heads, key_width, value_width, window)
    return FullAttention(heads, key_width, value_width)


def _state(conv: Any, recurrent: Any, own: Mapping[str, Any], config: Any) -> LinearState:
    """A recurrent state. transformers keeps one more column of the convolution than engines do, and states in FP32
    that engines keep in a type of their choice.
    """
    kernel = int(conv.shape[-1]) if conv is not None else 0
    channels = prod(int(axis) for axis in conv.shape[1:-1]) if conv is not None else 0
    elements = prod(int(axis) for axis in recurrent.shape[1:]) if recurrent is not None else 0
    units = int(recurrent.shape[1]) if recurrent is not None and len(recurrent.shape) > 2 else channels
    kind = _kind(own, elements)
    dtype = None
    if kind == "linear_attention":
        dtype = _FLOATS.get(str(recurrent.dtype).removeprefix("torch."))
    if kind == "gated_delta_net":
        units = int(attribute(config, "linear_num_key_heads") or units)
    return LinearState(kind, channels * max(kernel - 1, 0), elements, max(units, 1), dtype, None, kernel)


def _kind(
    own: Mapping[str, Any], elements: int
) -> Literal["mamba1", "mamba2", "gated_delta_net", "short_conv", "linear_attention", "rwkv"]:
    names = " ".join(own)
    if not elements:
        return "short_conv"
    if "linear_attn" in names:
        return "gated_delta_net"
    if "x_proj" in names or "dt_proj" in names:
        return "mamba1"
    return "mamba2" if any(name.endswith(".D") for name in own) else "linear_attention"


def _first(states: Any) -> Any:
    """A state that a layer keeps under a number, or by itself."""
    if isinstance(states, dict):
        return next(iter(states.values()), None)
    return states if hasattr(states, "shape") else None


def _owner(kept: Sequence[Kept], index: int, config: Any) -> int:
    """The layer whose cache a layer without one reads: the last before it of the same type."""
    types = attribute(config, "layer_types") or []
    for earlier in range(len(kept) - 1, -1, -1):
        is_alike = len(types) <= index or types[earlier] == types[index]
        if is_alike and not isinstance(kept[earlier][0], (SharedKV, NoCache)):
            return earlier
    return 0


def _by_attributes(config: Any, layers: Sequence[Mapping[str, Any]]) -> KeptCaches:
    """The cache by the attributes that most configs have."""
    heads = attribute(config, "num_attention_heads")
    hidden = attribute(config, "hidden_size")
    if not isinstance(heads, int) or not isinstance(hidden, int) or not heads or not layers:
        note = "what a sequence keeps is not known: the model does not run on meta tensors"
        return KeptCaches(layers=((NoCache(),),) * len(layers), grows=False, notes=(note,))
    kv_heads = attribute(config, "num_key_value_heads") or heads
    width = attribute(config, "head_dim") or hidden // heads
    note = "the model does not run on meta tensors: its cache goes by its config's heads"
    return KeptCaches(
        layers=((FullAttention(int(kv_heads), int(width), int(width)),),) * len(layers), grows=True, notes=(note,)
    )
