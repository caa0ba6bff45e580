"""What vLLM's processes take outside torch: the CUDA context, libraries, NCCL.

Which of it is charged to the budget changed with almost every release; the rest comes out of the slack that
`gpu_memory_utilization` leaves. The constants are fitted, see catalog/engines/vllm_fitted.yaml.

Source: worker.py and gpu_worker.py of the releases that catalog/engines/vllm.yaml names.
"""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.engines.vllm.fitted import Fitted
from memplan.engines.vllm.settings import VllmSettings
from memplan.records import dataclass
from memplan.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Bytes outside torch: charged to the budget, and uncharged, which the slack must hold."""

    charged_bytes: int
    uncharged_bytes: int
    context_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.charged_bytes + self.uncharged_bytes


def outside_torch(gpu: GpuSpec, settings: VllmSettings, rules: Rules, fitted: Fitted) -> Outside:
    """What lies outside torch on one rank, told apart by how the release accounts for it."""
    accounting = rules["accounting_v1"] if settings.generation == "v1" else rules["accounting"]
    context = context_bytes(gpu, fitted)
    nccl, growth = nccl_bytes(gpu, settings, fitted)
    own = _own_bytes(gpu, settings, fitted)
    if rules["graph_residue"] and settings.runner == "v1" and not settings.eager and gpu.vendor == "nvidia":
        own += round(fitted.graph_residue_mib * MIB)
    charged, uncharged = own, 0
    if accounting in ("device", "allocated"):
        charged += context + nccl
    elif accounting in ("baseline", "reserved"):
        charged, uncharged = charged + nccl, context
    else:
        charged, uncharged = charged + growth, context + max(0, nccl - growth)
    return Outside(charged_bytes=charged, uncharged_bytes=uncharged, context_bytes=context)


def _own_bytes(gpu: GpuSpec, settings: VllmSettings, fitted: Fitted) -> int:
    """Libraries and kernels that a process loads after the snapshot."""
    if gpu.vendor == "amd":
        return round(fitted.own_amd_mib * MIB)
    own = fitted.own_v0_mib if settings.generation == "v0" else fitted.own_v1_mib
    is_hopper = gpu.cuda_capability in (9.0, 10.0, 10.3)
    return round((own + (fitted.own_hopper_mib if is_hopper else 0.0)) * MIB)


def context_bytes(gpu: GpuSpec, fitted: Fitted) -> int:
    """The CUDA context of a process: larger where the driver loads more for the card."""
    capability = gpu.cuda_capability or 9.0
    is_old = gpu.vendor == "nvidia" and (capability < 8.0 or capability == 8.6)
    return round((fitted.context_old_mib if is_old else fitted.context_mib) * MIB)


def nccl_bytes(gpu: GpuSpec, settings: VllmSettings, fitted: Fitted) -> tuple[int, int]:
    """Communication buffers of one rank: all of them, and those that appear only with the first pass."""
    ranks = settings.layout.tensor
    if ranks * settings.layout.pipeline == 1:
        return 0, 0
    if has_multicast(gpu) and ranks > 1:
        peers = min(ranks, 8) - 1
        return round(fitted.nccl_nvls_mib_per_peer * peers * MIB), round(fitted.nccl_growth_nvls_mib * MIB)
    return round(fitted.nccl_mib * MIB), round(fitted.nccl_growth_mib * MIB)


def has_multicast(gpu: GpuSpec) -> bool:
    """Whether NCCL makes NVLink multicast buffers: Hopper and later data-centre cards behind an NVSwitch."""
    link = (gpu.interconnect or "").lower()
    return gpu.vendor == "nvidia" and gpu.cuda_capability in (9.0, 10.0, 10.3) and "nvl" in link
