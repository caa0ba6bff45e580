"""How far lines may be off, from the residuals over recorded starts: written by benchmarks/llama_cpp/fit.py."""

from __future__ import annotations

import re

from memplan.catalog.rules import Rules
from memplan.domain.attention import (
    ChunkedLocal,
    FullAttention,
    IndexerKeys,
    LatentAttention,
    LinearState,
    NoCache,
    SharedKV,
    SlidingWindow,
)
from memplan.domain.model import Layer, ModelSpec
from memplan.engines.llama_cpp.settings import LlamaSettings
from memplan.records import dataclass

_MODELLED = (FullAttention, SlidingWindow, ChunkedLocal, LatentAttention, SharedKV, NoCache, IndexerKeys)
_RECURRENT = frozenset({"mamba1", "mamba2", "short_conv", "gated_delta_net"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spreads:
    """Half-widths of 90 % intervals as fractions of a line: of weights without headers, of compute buffers."""

    weights: float
    compute: float


def spreads(spec: ModelSpec, settings: LlamaSettings, rules: Rules) -> Spreads:
    """The fitted fractions, and an assumed one where a model's graph is not modelled."""
    known = all(_is_modelled(layer) for layer in spec.layers)
    compute = rules["compute_spread_fork"] if settings.fork else rules["compute_spread"]
    return Spreads(
        weights=rules["weights_spread_handmade"] if is_handmade(spec.quantization) else rules["weights_spread"],
        compute=compute if known else max(compute, rules["compute_spread_unknown"]),
    )


def is_handmade(scheme: str | None) -> bool:
    """Whether a mix is one of ik_llama.cpp, whose recipes people write by hand."""
    mix = (scheme or "").removeprefix("gguf:")
    return re.fullmatch(r"iq[2-6]_k(s|ss|l|t)?|iq1_(bn|kt)|iq2_bn|q8_kv|.*_r(4|8|16)", mix) is not None


def _is_modelled(layer: Layer) -> bool:
    return all(
        kept.kind in _RECURRENT if isinstance(kept, LinearState) else isinstance(kept, _MODELLED)
        for kept in layer.caches
    )
