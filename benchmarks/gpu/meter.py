"""Reads memory while torch works: on a CUDA device for real, on the CPU as a rehearsal whose readings are all zero.

`device_used` is what the driver counts, by every process; `reserved` is the caching allocator's part of it, `allocated`
the part of that which tensors hold (each rounded up to 512 bytes). What lies outside torch is `device_used` less
`reserved`, less what was used before this process began.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Bytes at one moment, with the peaks since the last `Meter.restart`."""

    allocated_bytes: int = 0
    reserved_bytes: int = 0
    allocated_peak_bytes: int = 0
    reserved_peak_bytes: int = 0
    inactive_split_bytes: int = 0
    device_used_bytes: int = 0
    device_total_bytes: int = 0

    @property
    def outside_bytes(self) -> int:
        """What the device holds beside the caching allocator's segments, other processes included."""
        return self.device_used_bytes - self.reserved_bytes


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Reads one device; `device` is "cuda" or "cpu"."""

    device: str

    def read(self) -> Reading:
        """Return the counters now, when everything asked of the device is done."""
        import torch

        if self.device != "cuda":
            return Reading()
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        free, total = torch.cuda.mem_get_info()
        return Reading(
            allocated_bytes=stats.get("allocated_bytes.all.current", 0),
            reserved_bytes=stats.get("reserved_bytes.all.current", 0),
            allocated_peak_bytes=stats.get("allocated_bytes.all.peak", 0),
            reserved_peak_bytes=stats.get("reserved_bytes.all.peak", 0),
            inactive_split_bytes=stats.get("inactive_split_bytes.all.current", 0),
            device_used_bytes=total - free,
            device_total_bytes=total,
        )

    def restart(self) -> Reading:
        """Give back what is cached, begin new peaks, and return the level that they begin at."""
        import torch

        gc.collect()
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return self.read()

    def peak(self, step: Callable[[], object]) -> dict[str, int]:
        """Run a step twice and return how far the second run rose above the level before it, and what it left.

        The first run is for what a first time brings with it: kernels, handles, workspaces.
        """
        step()
        before = self.restart()
        kept: Any = step()
        after = self.read()
        del kept
        return {
            "peak_bytes": after.allocated_peak_bytes - before.allocated_bytes,
            "reserved_peak_bytes": after.reserved_peak_bytes - before.reserved_bytes,
            "kept_bytes": after.allocated_bytes - before.allocated_bytes,
        }


def driver_free_bytes() -> int | None:
    """Bytes free on the first device as the driver counts them without a context of ours; null without a driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).free)
    except pynvml.NVMLError:
        return None
