"""A key-value cache of lower precision, as an engine keeps it: keys and values rounded before attention reads them.

One scale per layer for keys and one for values, from the largest magnitude that calibration text gave (the `k_scale`
and `v_scale` of a checkpoint). Source: vLLM docs, quantized KV cache; the formats are e4m3 and int8.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass

KvDtype = Literal["fp8", "int8"]

_NAMES: dict[str, KvDtype] = {"fp8": "fp8", "fp8_e4m3": "fp8", "int8": "int8"}
_LARGEST = {"fp8": 448.0, "int8": 127.0}


def kv_dtype_named(name: str) -> KvDtype:
    """Return the cache type of that name. Raises: UsageError for one that is not evaluated."""
    found = _NAMES.get(name.lower())
    if found is None:
        hint = did_you_mean(name, list(_NAMES)) or f"use {' or '.join(_NAMES)}"
        raise UsageError(f"not a cache type that can be evaluated: `{name}`", hint=hint)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class KvScales:
    """What a stored key or value of a layer is multiplied with to have it back."""

    k_scale: float
    v_scale: float


class KvRounding:
    """The largest magnitudes of keys and values by layer while `measures`, and rounding by them afterwards."""

    def __init__(self, dtype: KvDtype) -> None:
        self.dtype = dtype
        self.measures = True
        self._largest: dict[int, list[float]] = {}

    def cache(self) -> DynamicCache:
        """A new cache for one batch."""
        return _Cache(self)

    def scales(self) -> dict[int, KvScales]:
        """The scale of every layer that was measured. Sliding-window and other layers alike."""
        top = _LARGEST[self.dtype]
        return {
            layer: KvScales(k_scale=key / top, v_scale=value / top)
            for layer, (key, value) in sorted(self._largest.items())
        }

    def apply(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Measure, or round and return what an engine's attention would read."""
        if self.measures:
            seen = self._largest.setdefault(layer, [0.0, 0.0])
            for index, tensor in enumerate((key, value)):
                seen[index] = max(seen[index], float(tensor.abs().max()))
            return key, value
        largest = self._largest.get(layer)
        if largest is None:
            raise UsageError(f"layer {layer} stored no keys during calibration", hint="leave --kv-dtype away")
        return self._round(key, largest[0]), self._round(value, largest[1])

    def _round(self, tensor: Tensor, largest: float) -> Tensor:
        top = _LARGEST[self.dtype]
        scale = largest / top or 1.0
        scaled = (tensor.float() / scale).clamp(-top, top)
        stored = scaled.to(torch.float8_e4m3fn) if self.dtype == "fp8" else scaled.round().to(torch.int8)
        return (stored.float() * scale).to(tensor.dtype)


class _Cache(DynamicCache):
    """Hands keys and values on as they would come out of the cache, and keeps none: a window is one pass."""

    def __init__(self, rounding: KvRounding) -> None:
        super().__init__()
        self._rounding = rounding

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """The cache of transformers, whose argument names these are."""
        return self._rounding.apply(key_states, value_states, layer_idx)
