"""How much of a GPU each engine reaches, as fitted on published measurements: rows of efficiency.yaml as Efficiency.

An engine's fractions are multiplied by those of the GPU's class. What no measurement stands behind (an engine or a
class that is not in the file) takes the file's defaults, and says `assumed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from memplan.catalog.tables import load_table
from memplan.domain.gpu import GpuSpec
from memplan.domain.speed import Efficiency
from memplan.records import Same

# Generations that share the factors of a measured one: the next of the same line, where no measurement is in the file.
_LIKE = {"cdna4": "cdna3", "cdna2": "cdna3", "volta": "turing"}
# What no kernel passes, whatever the fit multiplies: parts of the sheet's tensor rate and of its bandwidth.
_MAX_COMPUTE, _MAX_BANDWIDTH = 0.8, 0.95
# GeForce cards multiply at half rate when they accumulate in FP32, and the sheet's rate in gpus.yaml is that one: an
# engine that accumulates in FP16 has twice as much. Source: NVIDIA's Ampere GA102 and Ada whitepapers, tensor rates.
_HALF_ACCUMULATION = 2.0
# From here on an engine's `hbm` factor counts: what its kernels reach of memory that is faster than GDDR.
_HBM_BYTES_PER_S = 1.4e12
# Board power for every TFLOP/s of the tensor rate from which on `power` costs nothing: what GeForce cards have.
_AMPLE_WATTS = 1.5


def _power_limit(own: Mapping[str, Any], gpu: GpuSpec, doubled: float) -> float:
    """What an engine's kernels lose on a card whose board power is low for its tensor rate.

    (watts per TFLOP/s / 1.5) to the power of the engine's `power`, at most 1: an H100 PCIe has 0.5, an RTX 4080 1.6.
    """
    rate = (gpu.flops_per_s or {}).get("fp16")
    if "power" not in own or not rate or not gpu.power_watts:
        return 1.0
    return float(min(1.0, gpu.power_watts / (doubled * rate / 1e12) / _AMPLE_WATTS) ** own["power"])


def gpu_class(gpu: GpuSpec) -> str:
    """The class of a GPU in efficiency.yaml: its generation, and of Ampere the chips with HBM (compute capability 8.0)
    apart from those with GDDR.
    """
    if gpu.architecture == "ampere" and gpu.compute_capability == "8.0":
        return "ampere-hbm"
    return _LIKE.get(gpu.architecture, gpu.architecture)


def efficiency_for(engine: str, gpu: GpuSpec) -> Efficiency:
    """Return what `engine` (`vllm`, `llama.cpp`, ...) reaches of `gpu`."""
    return _efficiency_for(engine, Same(gpu))


@lru_cache(maxsize=1024)
def _efficiency_for(engine: str, same: Same) -> Efficiency:
    gpu = same.record
    assert isinstance(gpu, GpuSpec)
    return efficiency_from(_table(), engine, gpu)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return load_table(Path("efficiency.yaml"))


def efficiency_from(table: Mapping[str, Any], engine: str, gpu: GpuSpec) -> Efficiency:
    """The same from a table in the form of efficiency.yaml, which the fit changes as it goes."""
    rows: Mapping[str, Any] = table["engines"]
    own: Mapping[str, Any] = rows.get(engine) or table["default"]
    kind = gpu_class(gpu)
    known: Mapping[str, Any] | None = table["classes"].get(kind)
    factors: Mapping[str, Any] = known or {"compute": 1.0, "bandwidth": 1.0, "overhead": 1.0}
    doubled = _HALF_ACCUMULATION if own.get("half_accumulation") and "GeForce" in gpu.title else 1.0
    doubled *= _power_limit(own, gpu, doubled)
    fast = own.get("hbm", 1.0) if (gpu.bandwidth_bytes_per_s or 0.0) >= _HBM_BYTES_PER_S else 1.0
    measured = engine in rows and known is not None
    return Efficiency(
        name=f"{engine}/{kind}",
        compute_fraction=doubled * min(_MAX_COMPUTE, own["compute"] * factors["compute"]),
        bandwidth_fraction=min(_MAX_BANDWIDTH, own["bandwidth"] * factors["bandwidth"] * fast),
        narrow_fraction=table["narrow"],
        packed_fraction=table["packed"],
        packed_compute_fraction=own.get("packed_compute", 1.0),
        experts_fraction=table["experts"],
        step_overhead_s=own["step_us"] * 1e-6,
        layer_overhead_s=own["layer_us"] * factors["overhead"] * 1e-6,
        experts_overhead_s=table["experts_us"] * factors["overhead"] * 1e-6,
        sequence_overhead_s=own["sequence_us"] * 1e-6,
        request_overhead_s=own["request_us"] * 1e-6,
        link_fraction=table["link"]["fraction"],
        link_latency_s=table["link"]["latency_us"] * factors["overhead"] * 1e-6,
        pcie_fraction=own.get("pcie", table["host"]["pcie"]),
        host_bytes_per_s=table["host"]["gb_per_s"] * 1e9,
        computes_on_host=bool(own.get("computes_on_host", False)),
        prefill_error=table["error"]["prefill"],
        decode_error=table["error"]["decode"],
        provenance="modelled" if measured else "assumed",
        source="memplan/catalog/efficiency.yaml",
    )
