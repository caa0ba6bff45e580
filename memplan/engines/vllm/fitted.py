"""The constants of the vLLM model that were fitted on recorded runs, and the widths of its intervals."""

from __future__ import annotations

from functools import cache

from memplan.catalog.tables import load_constants
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Fitted sizes in MiB; the YAML file says what each is.

    `intervals` holds, for a class of terms, how far real values lie below and above predicted ones, as a share.
    """

    context_mib: float
    context_old_mib: float
    own_v0_mib: float
    own_v0_mib_per_1024_threads: float
    own_v1_mib: float
    own_hopper_mib: float
    own_amd_mib: float
    own_cdna_mib: float
    nccl_mib: float
    nccl_mib_per_pair: float
    nccl_growth_mib: float
    nccl_multicast_mib_per_peer: float
    nccl_multicast_mib: float
    nccl_multicast_mib_of_experts: float
    nccl_multicast_growth_mib: float
    nccl_multicast_growth_mib_per_rank: float
    fused_all_reduce_mib: float
    rccl_mib_per_pair: float
    activation_kept_mib: float
    graph_v0_mib: float
    graph_first_mib: float
    graph_first_mib_per_1024: float
    graph_piece_mib: float
    graph_full_mib: float
    graph_piece_routed_mib: float
    graph_full_routed_mib: float
    graph_piece_hybrid_mib: float
    graph_full_hybrid_mib: float
    graph_held_share: float
    graph_held_mib: float
    graph_residue_mib: float
    non_torch_width_mib: float
    non_torch_ranks_width_mib: float
    intervals: dict[str, list[float]]


@cache
def load_fitted() -> Fitted:
    """Read the constants."""
    sizes, intervals = load_constants("vllm")
    return Fitted(**sizes, intervals=intervals)
