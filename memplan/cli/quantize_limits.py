"""What a quantization may use of memory and disk, whether its forecast keeps to that, and what would."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from memplan.cli.options import Given
from memplan.domain.model import ModelSpec
from memplan.quantize.forecast import Forecast, forecast
from memplan.quantize.methods import method_named
from memplan.quantize.request import QuantizeRequest
from memplan.records import dataclass, replace
from memplan.units import format_gib, parse_size_bytes

# Methods by what they hold, the hungriest first.
_LIGHTER = ("awq", "int8", "rtn")
_MOST_OFFERED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may be used, None where nobody says: what was given, else what the system has free."""

    ram_bytes: int | None
    gpu_bytes: int | None
    disk_bytes: int | None


def limits_of(given: Given, output: Path) -> Limits:
    """Return the limits of a command. Raises: UsageError for a size that is none."""
    ram = parse_size_bytes(str(given["max_ram"]), what="--max-ram") if "max_ram" in given else _free_memory()
    gpu = None
    if "max_gpu_memory" in given:
        gpu = parse_size_bytes(str(given["max_gpu_memory"]), what="--max-gpu-memory")
    if ram is not None and given.get("device", "cpu") == "cpu":
        ram //= max(1, int(given.get("devices", 1)))  # each of several processes holds as much
    return Limits(ram_bytes=ram, gpu_bytes=gpu, disk_bytes=_free_disk(output))


def shortage(found: Forecast, limits: Limits) -> str | None:
    """What is missing, in words; None where nothing is."""
    step = found.hungriest.name
    asked = (
        ("GPU memory", found.device_bytes, limits.gpu_bytes, f" ({step})"),
        ("memory", found.host_bytes, limits.ram_bytes, f" ({step})" if found.device == "cpu" else ""),
        ("disk", found.disk_bytes, limits.disk_bytes, ""),
    )
    for what, needed, limit, why in asked:
        if limit is not None and needed > limit:
            return f"needs {format_gib(needed)} of {what}{why}; {format_gib(limit)} may be used"
    return None


def mends(spec: ModelSpec, request: QuantizeRequest, found: Forecast, limits: Limits) -> str:
    """What would fit, found by forecasting it."""
    if limits.disk_bytes is not None and found.disk_bytes > limits.disk_bytes and found.calibration_tokens:
        fewer = replace(request, num_samples=max(1, request.num_samples // 4))
        if forecast(spec, fewer).disk_bytes <= limits.disk_bytes:
            return f"--num-samples {fewer.num_samples} fits; or --output on a disk with {format_gib(found.disk_bytes)}"
    if limits.disk_bytes is not None and found.disk_bytes > limits.disk_bytes:
        return f"--output on a disk with {format_gib(found.disk_bytes)}"
    fitting = []
    for words, changed in _changes(request):
        there = forecast(spec, changed)
        if shortage(there, limits) is None:
            needed = there.host_bytes if changed.device == "cpu" else there.device_bytes
            fitting.append(f"{words} ({format_gib(needed)})")
    option = "--max-ram" if request.device == "cpu" else "--max-gpu-memory"
    if fitting:
        return f"fits: {', '.join(fitting[:_MOST_OFFERED])}; or a larger {option}"
    return f"it is the widest block that must be held: a larger {option}, on a machine that has it"


def _changes(request: QuantizeRequest) -> Iterator[tuple[str, QuantizeRequest]]:
    """Requests near this one that hold less."""
    if request.batch_size > 1 and request.method.needs_calibration:
        yield "--batch-size 1", replace(request, batch_size=1)
    for name in _LIGHTER:
        if name != request.method.name:
            method = method_named(name)
            yield f"--method {name}", replace(request, method=method, bits=method.bits, group_size=method.group_size)


def _free_disk(output: Path) -> int | None:
    folder = output.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _free_memory() -> int | None:
    """What Linux says is available; None elsewhere."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
