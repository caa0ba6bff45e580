"""The constants of the SGLang model that were fitted on recorded runs, and the widths of its intervals."""

from __future__ import annotations

from functools import cache

from memplan.catalog.tables import load_constants
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Half-widths of the 90 % intervals: shares of the term, or MiB where the name says so."""

    weights: float
    weights_quantized: float
    weights_int4: float
    weights_mib: float
    before_load_mib: float
    before_load_ranks_mib: float
    pool: float
    cuda_graph: float
    cuda_graph_mib: float
    activation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Fitted sizes in MiB; the YAML file says what each is."""

    context_mib: float
    context_large_mib: float
    context_growth_mib: float
    context_amd_mib: float
    communication_mib: float
    communication_mib_per_peer: float
    communication_amd_mib_per_peer: float
    first_kernels_mib: float
    first_kernels_ranks_mib: float
    workspace_mib: float
    workspace_hopper_mib: float
    workspace_blackwell_mib: float
    workspace_amd_mib: float
    graph_base_mib: float
    graph_piece_mib: float
    graph_old_size_mib: float
    prefill_graph_base_mib: float
    prefill_graph_piece_mib: float
    intervals: Intervals


@cache
def load_fitted() -> Fitted:
    """Read the constants."""
    sizes, intervals = load_constants("sglang")
    return Fitted(**sizes, intervals=Intervals(**intervals))
