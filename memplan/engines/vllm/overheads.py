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

_MULTIPROCESSORS = 80  # of a card that the catalogue has no number for
_CHANNELS = 24
_CHANNELS_OF_EIGHT_LINKS = 16
_EIGHT_LINKS_BYTES_PER_S = 400e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Bytes outside torch: charged to the budget, and uncharged, which the slack must hold."""

    charged_bytes: int
    uncharged_bytes: int
    context_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.charged_bytes + self.uncharged_bytes


def outside_torch(gpu: GpuSpec, settings: VllmSettings, rules: Rules, fitted: Fitted, *, routed: bool) -> Outside:
    """What lies outside torch on one rank, told apart by how the release accounts for it."""
    accounting = rules["accounting_v1"] if settings.generation == "v1" else rules["accounting"]
    context = context_bytes(gpu, fitted)
    nccl, growth = nccl_bytes(gpu, settings, rules, fitted, routed=routed)
    own = _own_bytes(gpu, settings, fitted, from_start=settings.generation == "v0" or accounting == "allocated")
    if rules["graph_residue"] and _captures_whole(gpu, settings):
        own += round(fitted.graph_residue_mib * MIB)
    charged, uncharged = own, 0
    if accounting == "peak":
        charged, uncharged = 0, own + context + nccl + growth
    elif accounting in ("device", "allocated"):
        charged += context + nccl + growth
    elif accounting in ("baseline", "reserved"):
        charged, uncharged = charged + nccl + growth, context
    else:
        charged, uncharged = charged + growth, context + nccl
    return Outside(charged_bytes=charged, uncharged_bytes=uncharged, context_bytes=context)


def charges_segments(settings: VllmSettings, rules: Rules) -> bool:
    """Whether what lies unused in the weights' segments counts as memory outside torch.

    It does where the device's memory is compared with what torch allocated, not with what torch reserved.
    """
    if settings.generation == "v1":
        return bool(rules["accounting_v1"] == "allocated")
    return bool(rules["charges_segments"])


def _captures_whole(gpu: GpuSpec, settings: VllmSettings) -> bool:
    """Whether graphs are captured on trial in one process; stages of a pipeline were seen to leave nothing behind."""
    on_trial = settings.runner == "v1" and not settings.eager
    return gpu.vendor == "nvidia" and on_trial and settings.layout.pipeline == 1


def _own_bytes(gpu: GpuSpec, settings: VllmSettings, fitted: Fitted, *, from_start: bool) -> int:
    """Libraries and kernels that a process loads after the snapshot.

    The first kernels make the driver set local memory aside for every thread that the multiprocessors can hold. That
    counts `from_start` of the process on: with V0, whose snapshot comes before any kernel has run, and where there is
    no snapshot.
    """
    if gpu.vendor == "amd":
        is_data_centre = gpu.architecture.startswith("cdna")
        return round((fitted.own_cdna_mib if is_data_centre else fitted.own_amd_mib) * MIB)
    own = fitted.own_v1_mib
    if from_start:
        threads = (gpu.num_multiprocessors or _MULTIPROCESSORS) * _threads(gpu.cuda_capability or 9.0)
        own = fitted.own_v0_mib + fitted.own_v0_mib_per_1024_threads * threads / 1024
    if settings.generation == "v1" and gpu.cuda_capability in (9.0, 10.0, 10.3):
        own += fitted.own_hopper_mib
    return round(own * MIB)


def _threads(capability: float) -> int:
    """How many threads a multiprocessor holds. Source: CUDA C++ Programming Guide, technical specifications."""
    if capability == 7.5:
        return 1024
    return 1536 if capability in (8.6, 8.7, 8.9, 12.0, 12.1) else 2048


def context_bytes(gpu: GpuSpec, fitted: Fitted) -> int:
    """The CUDA context of a process: larger where the driver loads more for the card."""
    capability = gpu.cuda_capability or 9.0
    is_old = gpu.vendor == "nvidia" and (capability < 8.0 or capability == 8.6)
    return round((fitted.context_old_mib if is_old else fitted.context_mib) * MIB)


def nccl_bytes(gpu: GpuSpec, settings: VllmSettings, rules: Rules, fitted: Fitted, *, routed: bool) -> tuple[int, int]:
    """Communication buffers of one rank: those of NCCL's groups, and what collectives add with the first pass.

    Where NVSwitch multicast is used, early releases of NCCL kept a buffer for every further rank; later ones one for
    every group of ranks, routed experts making a group of their own. From 0.17 on FlashInfer fuses the all-reduce with
    the norm behind it and has buffers for that. What NCCL keeps behind an NVSwitch without multicast, and what RCCL
    adds, was seen to grow with the square of the peers.
    """
    ranks = settings.layout.tensor
    if ranks * settings.layout.pipeline == 1:
        return 0, 0
    if ranks == 1:
        return round(fitted.nccl_mib * MIB), 0
    if gpu.vendor == "amd":
        return round(fitted.nccl_mib * MIB), round(fitted.rccl_mib_per_pair * (min(ranks, 8) - 1) ** 2 * MIB)
    if has_multicast(gpu) and rules["nccl_multicast"] == "peer":
        return round(fitted.nccl_multicast_mib_per_peer * (min(ranks, 8) - 1) * _channel_share(gpu) * MIB), 0
    kept, growth = _group_mib(gpu, ranks, fitted)
    if has_multicast(gpu):
        kept += fitted.nccl_multicast_mib_of_experts * _channel_share(gpu) if routed else 0.0
        if rules["fuses_all_reduce"] and settings.layout.pipeline == settings.layout.data == 1:
            growth += fitted.fused_all_reduce_mib
    return round(kept * MIB), round(growth * MIB)


def group_bytes(gpu: GpuSpec, ranks: int, fitted: Fitted) -> int:
    """NCCL's buffers of one group of ranks, as later releases of it keep them, whatever engine has made the group."""
    if gpu.vendor == "amd":
        return round((fitted.nccl_mib + fitted.rccl_mib_per_pair * (min(ranks, 8) - 1) ** 2) * MIB)
    return round(sum(_group_mib(gpu, ranks, fitted)) * MIB)


def _group_mib(gpu: GpuSpec, ranks: int, fitted: Fitted) -> tuple[float, float]:
    """What a group of ranks keeps from its start on, and what its collectives add with the first pass."""
    share = _channel_share(gpu)
    if has_multicast(gpu):
        growth = fitted.nccl_multicast_growth_mib + fitted.nccl_multicast_growth_mib_per_rank * min(ranks, 8)
        return fitted.nccl_multicast_mib * share, growth * share
    pairs = (min(ranks, 8) - 1) ** 2 if is_switched(gpu) else 0
    return fitted.nccl_mib + fitted.nccl_mib_per_pair * pairs * share, fitted.nccl_growth_mib


def _channel_share(gpu: GpuSpec) -> float:
    """The channels that NCCL opens over a card's NVLinks, of the 24 of an A100 or H100, whose buffers are fitted.

    It opens as many as fill the links, twice: 16 over the eight links of an A800 or H800. Every channel has buffers of
    its own for every peer.
    Source: src/graph/search.cc and connect.cc of NCCL 2.21; H800's are in NCCL's issue 892, and that memory is linear
    in channels in 864.
    """
    is_narrow = is_switched(gpu) and gpu.interconnect_bytes_per_s == _EIGHT_LINKS_BYTES_PER_S
    return (_CHANNELS_OF_EIGHT_LINKS if is_narrow else _CHANNELS) / _CHANNELS


def is_switched(gpu: GpuSpec) -> bool:
    """Whether every GPU of a machine reaches every other over NVLink, and keeps buffers for it."""
    link = (gpu.interconnect or "").lower()
    return gpu.vendor == "nvidia" and "nvl" in link and "bridge" not in link


def has_multicast(gpu: GpuSpec) -> bool:
    """Whether NCCL makes NVLink multicast buffers: Hopper and later data-centre cards behind an NVSwitch."""
    return is_switched(gpu) and gpu.cuda_capability in (9.0, 10.0, 10.3)
