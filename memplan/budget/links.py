"""Time on the wires between GPUs, and between a GPU and its host.

Formulas (docs/speed-model.md, "Links"), for p ranks, a message of n bytes and b bytes/s in one direction:

    all-reduce   latency + 2 (p - 1)/p x n / b        (ring; reduce-scatter and all-gather)
    all-to-all   latency +   (p - 1)/p x n / b        (expert parallelism, each way)
    send         latency +               n / b        (pipeline stages)

Vendors count both directions of a link; a ring uses each once, so b is half of what a sheet says. Cards without a link,
and bridges that join only pairs, go over PCIe. Ranks beyond one machine go over a network that no one has named: 400
Gbit/s a GPU is assumed.
"""

from __future__ import annotations

from memplan.domain.gpu import GpuSpec
from memplan.domain.speed import Efficiency
from memplan.records import dataclass

GPUS_PER_MACHINE = 8
# Bytes a second and lane in one direction, after encoding. Source: PCI-SIG, generations 3 to 6.
_LANE_BYTES_PER_S = {"3.0": 0.985e9, "4.0": 1.969e9, "5.0": 3.938e9, "6.0": 7.563e9}
_ASSUMED_PCIE = "4.0 x16"
# Assumed: a 400 Gbit/s adapter for every GPU, and the latency that NCCL shows over one.
_NETWORK_BYTES_PER_S = 50e9
_NETWORK_LATENCY_S = 30e-6
# Assumed: a collective over PCIe goes through host memory and costs about twice the latency of a direct link.
_PCIE_LATENCY_FACTOR = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction of what joins ranks: `bytes_per_s` as used, and the latency of one collective."""

    kind: str
    bytes_per_s: float
    latency_s: float


def pcie_bytes_per_s(gpu: GpuSpec) -> float:
    """One direction of the bus between a GPU and its host, as the sheet has it; 4.0 x16 where it is not known."""
    generation, _, lanes = (gpu.pcie or _ASSUMED_PCIE).partition(" x")
    rate = _LANE_BYTES_PER_S.get(generation, _LANE_BYTES_PER_S["4.0"])
    return rate * (int(lanes) if lanes.isdigit() else 16)


def link_between(gpu: GpuSpec, ranks: int, efficiency: Efficiency) -> Link:
    """What joins `ranks` ranks of one group."""
    if ranks > GPUS_PER_MACHINE:
        return Link(
            kind="network",
            bytes_per_s=_NETWORK_BYTES_PER_S * efficiency.link_fraction,
            latency_s=_NETWORK_LATENCY_S + efficiency.link_latency_s,
        )
    kind = gpu.interconnect or ""
    bridged = "bridge" in kind and ranks > (4 if "4-way" in kind else 2)
    if gpu.interconnect and gpu.interconnect_bytes_per_s and not bridged:
        return Link(
            kind=gpu.interconnect,
            bytes_per_s=gpu.interconnect_bytes_per_s / 2 * efficiency.link_fraction,
            latency_s=efficiency.link_latency_s,
        )
    return Link(
        kind="PCIe",
        bytes_per_s=pcie_bytes_per_s(gpu) * efficiency.link_fraction,
        latency_s=_PCIE_LATENCY_FACTOR * efficiency.link_latency_s,
    )


def all_reduce_s(link: Link, ranks: int, size_bytes: float) -> float:
    """Time of one all-reduce over a ring; nothing for one rank."""
    return 0.0 if ranks == 1 else link.latency_s + 2 * (ranks - 1) / ranks * size_bytes / link.bytes_per_s


def all_to_all_s(link: Link, ranks: int, size_bytes: float) -> float:
    """Time in which every rank sends its part of `size_bytes` to every other."""
    return 0.0 if ranks == 1 else link.latency_s + (ranks - 1) / ranks * size_bytes / link.bytes_per_s


def send_s(link: Link, size_bytes: float) -> float:
    """Time of a message from one rank to another."""
    return link.latency_s + size_bytes / link.bytes_per_s
