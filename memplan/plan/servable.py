"""Whether a candidate can run at all: its weight scheme, its cache type and its layout on its GPU under its engine."""

from __future__ import annotations

from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Servable:
    """The kernel that runs a candidate, or why none does. `is_slow` marks a kernel that emulates the format."""

    runs: bool
    kernel: str = ""
    reason: str = ""
    source: str = ""
    is_slow: bool = False


def servable(
    spec: ModelSpec,
    scheme: str | None,
    kv_dtype: str | None,
    gpu: GpuSpec,
    layout: ParallelLayout,
    engine: str,
    version: str | None,
) -> Servable:
    """A few rules by compute capability until the table of the catalogue is there."""
    capability = gpu.cuda_capability or 0.0
    if scheme == "nvfp4" and capability < 10:
        return Servable(runs=False, reason="NVFP4 matrices need a Blackwell GPU")
    if scheme and scheme.startswith("fp8") and gpu.vendor == "nvidia" and capability < 8.9:
        return Servable(runs=False, reason="FP8 matrices need compute capability 8.9")
    if kv_dtype and kv_dtype.startswith("fp8") and gpu.vendor == "nvidia" and capability < 8.9:
        return Servable(runs=False, reason="an FP8 cache needs compute capability 8.9")
    return Servable(runs=True)
