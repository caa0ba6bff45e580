"""How far lines may be off, from the residuals over recorded starts: written by benchmarks/llama_cpp/fit.py."""

from __future__ import annotations

from functools import lru_cache

from memplan.catalog.rules import load_rules
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spreads:
    """Half-widths of 90 % intervals as fractions of a line: of weights without headers, of compute buffers."""

    weights: float
    compute: float


@lru_cache(maxsize=1)
def spreads() -> Spreads:
    """The fitted fractions."""
    rules = load_rules("llama.cpp", None)
    return Spreads(weights=rules["weights_spread"], compute=rules["compute_spread"])
