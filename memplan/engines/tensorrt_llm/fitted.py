"""The constants of the TensorRT-LLM model that were fitted on recorded runs, and the widths of its intervals."""

from __future__ import annotations

from functools import cache

from memplan.catalog.tables import load_constants
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Half-widths of the 90 % intervals: shares of the term, or MiB where the name says so."""

    weights: float
    weights_int4: float
    weights_mib: float
    outside_mib: float
    outside_ranks_mib: float
    activation: float
    activation_mib: float
    cuda_graph: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Fitted sizes in MiB; the YAML file says what each is."""

    outside_mib: float
    outside_engine_mib: float
    communication_mib: float
    communication_mib_per_peer: float
    loaded_mib: float
    graph_piece_mib: float
    graph_base_mib: float
    intervals: Intervals


@cache
def load_fitted() -> Fitted:
    """Read the constants."""
    sizes, intervals = load_constants("tensorrt_llm")
    return Fitted(**sizes, intervals=Intervals(**intervals))
