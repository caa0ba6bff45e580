"""A GPU, as far as memory and planning need it."""

from __future__ import annotations

from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """On-demand US dollars per GPU and hour, as seen in a named source."""

    low: float
    high: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One accelerator, or a MIG slice of one.

    `name` is what `--gpu` takes, `title` what the driver prints. `memory_bytes` is what a CUDA program sees as the
    device's total, which is what engines multiply by their utilization; `driver_memory_bytes` is what nvidia-smi
    prints, `nominal_memory_bytes` what the card is sold as. `visible_low_bytes` and `visible_high_bytes` are the
    extremes seen over Linux driver versions. Rates are dense tensor-core rates with FP32 accumulation where the card
    makes a difference; `flops_per_s` is keyed fp16, bf16, fp8, int8, fp4. `interconnect_bytes_per_s` counts both
    directions. `provenance` tells how `memory_bytes` is known: `measured` (seen on real cards) or `derived` (a stated
    rule). `resolved_note` says which device was taken, when the name that was asked for could mean several.
    """

    name: str
    vendor: str
    architecture: str
    memory_bytes: int
    driver_memory_bytes: int | None
    visible_low_bytes: int
    visible_high_bytes: int
    title: str = ""
    aliases: tuple[str, ...] = ()
    nominal_memory_bytes: int | None = None
    compute_capability: str | None = None
    num_multiprocessors: int | None = None
    bandwidth_bytes_per_s: float | None = None
    flops_per_s: dict[str, float] | None = None
    interconnect: str | None = None
    interconnect_bytes_per_s: float | None = None
    pcie: str | None = None
    power_watts: float | None = None
    price: Price | None = None
    mig_profiles: tuple[str, ...] = ()
    provenance: str = "measured"
    source: str = ""
    note: str = ""
    resolved_note: str = ""

    @property
    def cuda_capability(self) -> float | None:
        """The CUDA compute capability as a number, such as 8.9; None for a card that has none."""
        try:
            return float(self.compute_capability or "")
        except ValueError:
            return None
