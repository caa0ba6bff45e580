"""A GPU, as far as memory and planning need it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """On-demand US dollars per GPU and hour, as seen in a named source."""

    low: float
    high: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One accelerator, or a MIG slice of one.

    `memory_bytes` is what a CUDA program sees as the device's total, which is what engines multiply by their utilization;
    `driver_memory_bytes` is what nvidia-smi prints. `visible_low_bytes` and `visible_high_bytes` are the extremes seen over
    driver versions. Rates are dense tensor-core rates with FP32 accumulation where the card makes a difference.
    """

    name: str
    vendor: str
    architecture: str
    memory_bytes: int
    driver_memory_bytes: int | None
    visible_low_bytes: int
    visible_high_bytes: int
    compute_capability: str | None = None
    bandwidth_bytes_per_s: float | None = None
    flops_per_s: dict[str, float] | None = None
    interconnect: str | None = None
    interconnect_bytes_per_s: float | None = None
    price: Price | None = None
    provenance: str = "measured"
    source: str = ""
    note: str = ""
