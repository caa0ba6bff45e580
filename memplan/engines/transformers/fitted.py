"""The constants of the transformers model that no source states, and the widths of its intervals."""

from __future__ import annotations

from functools import cache

from memplan.catalog.tables import load_constants
from memplan.domain.gpu import GpuSpec
from memplan.records import dataclass
from memplan.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Half-widths of the 90 % intervals, as shares of the term or in MiB."""

    weights: float
    weights_quantized: float
    activation: float
    cache: float
    fragments: float
    context_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Sizes in MiB, shares of caches and activations; the YAML file says what each is."""

    context_mib: float
    context_old_mib: float
    context_amd_mib: float
    workspace_mib: float
    workspace_hopper_mib: float
    fragments: float
    host_base_gib: float
    intervals: Intervals


@cache
def load_fitted() -> Fitted:
    """Read the constants."""
    sizes, intervals = load_constants("transformers")
    return Fitted(**sizes, intervals=Intervals(**intervals))


def context_bytes(gpu: GpuSpec, fitted: Fitted) -> int:
    """The device context of a process, with the modules its kernels load."""
    if gpu.vendor == "amd":
        return round(fitted.context_amd_mib * MIB)
    capability = gpu.cuda_capability or 9.0
    is_old = gpu.vendor == "nvidia" and (capability < 8.0 or capability == 8.6)
    return round((fitted.context_old_mib if is_old else fitted.context_mib) * MIB)


def workspace_bytes(gpu: GpuSpec, fitted: Fitted) -> int:
    """cuBLAS' workspace, which torch allocates at the first product."""
    is_new = (gpu.cuda_capability or 0.0) >= 9.0
    return round((fitted.workspace_hopper_mib if is_new else fitted.workspace_mib) * MIB)
