"""The GPUs of this machine, as its driver reports them: for `--gpu auto` and `memplan gpus --local`.

NVIDIA through NVML (pynvml) or else nvidia-smi, AMD through amd-smi or else rocm-smi. Nothing here computes; a driver's
total and what CUDA sees of it are kept apart.
"""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from types import ModuleType
from typing import cast

from memplan.errors import MissingExtra
from memplan.records import dataclass
from memplan.units import MIB

_TIMEOUT_S = 20
_FIELDS = ("name", "memory.total", "memory.free", "memory.reserved")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalGpu:
    """One device of this machine.

    `driver_memory_bytes` is the total that the driver prints, `reserved_bytes` what it keeps back from programs (None
    when it does not say), `free_bytes` what is free now.
    """

    name: str
    driver_memory_bytes: int
    free_bytes: int
    reserved_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        """What a program sees as the total: exact where the driver tells its reserve, else by the catalogue's rule."""
        if self.reserved_bytes is not None:
            return self.driver_memory_bytes - self.reserved_bytes
        from memplan.catalog.gpus import derived_visible_mib

        return derived_visible_mib(self.driver_memory_bytes // MIB) * MIB


def read_local_gpus() -> tuple[LocalGpu, ...]:
    """Return the GPUs of this machine, in the driver's order.

    Raises: MissingExtra when no driver answers, or it lists no GPU.
    """
    for read in (_read_nvml, _read_nvidia_smi, _read_amd_smi, _read_rocm_smi):
        if gpus := read():
            return gpus
    raise MissingExtra(
        "no GPU found: neither NVML, nvidia-smi, amd-smi nor rocm-smi answered with one",
        hint="name the GPU instead, such as --gpu a100-80g; `memplan gpus` lists them",
    )


def _read_nvml() -> tuple[LocalGpu, ...]:
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return tuple(_nvml_gpu(nvml, handle) for handle in handles)
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def _nvml_gpu(nvml: ModuleType, handle: object) -> LocalGpu:
    """Read one device; the second version of the memory query tells the reserve apart, older drivers do not have it."""
    name = nvml.nvmlDeviceGetName(handle)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        reserved: int | None = int(memory.reserved)
    except (AttributeError, TypeError, nvml.NVMLError):
        memory, reserved = nvml.nvmlDeviceGetMemoryInfo(handle), None
    return LocalGpu(
        name=name.decode() if isinstance(name, bytes) else str(name),
        driver_memory_bytes=int(memory.total),
        free_bytes=int(memory.free),
        reserved_bytes=reserved,
    )


def _read_nvidia_smi() -> tuple[LocalGpu, ...]:
    """Ask nvidia-smi; drivers before 510 do not know the reserve and refuse the whole query, so it is asked again."""
    for fields in (_FIELDS, _FIELDS[:3]):
        output = _run("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
        if output is not None:
            return tuple(gpu for line in output.splitlines() if (gpu := _csv_gpu(line)))
    return ()


def _csv_gpu(line: str) -> LocalGpu | None:
    """Read `name, total, free[, reserved]` in MiB; a device that does not tell its memory (unified) is left out."""
    parts = [part.strip() for part in line.split(",")]
    if len(parts) < 3 or not (parts[1].isdigit() and parts[2].isdigit()):
        return None
    reserved = int(parts[3]) * MIB if len(parts) > 3 and parts[3].isdigit() else None
    total, free = int(parts[1]) * MIB, int(parts[2]) * MIB
    return LocalGpu(name=parts[0], driver_memory_bytes=total, free_bytes=free, reserved_bytes=reserved)


def _read_amd_smi() -> tuple[LocalGpu, ...]:
    static, usage = _json("amd-smi", "static", "--asic", "--json"), _json("amd-smi", "metric", "--mem-usage", "--json")
    names, memories = _devices(static), _devices(usage)
    gpus = []
    for index, memory in enumerate(memories):
        figures = _mapping(memory.get("mem_usage"))
        total, free = (_amd_bytes(figures.get(key)) for key in ("total_vram", "free_vram"))
        if total is None or free is None:
            continue
        asic = _mapping(names[index].get("asic")) if index < len(names) else {}
        name = str(asic.get("market_name", "AMD GPU"))
        gpus.append(LocalGpu(name=name, driver_memory_bytes=total, free_bytes=free, reserved_bytes=0))
    return tuple(gpus)


def _read_rocm_smi() -> tuple[LocalGpu, ...]:
    cards = _mapping(_json("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"))
    gpus = []
    for key in sorted(key for key in cards if key.startswith("card")):
        card = _mapping(cards[key])
        total, used = (str(card.get(f"VRAM Total {what}Memory (B)", "")) for what in ("", "Used "))
        if not (total.isdigit() and used.isdigit()):
            continue
        name = str(card.get("Card Series") or card.get("Card series") or card.get("Card Model") or "AMD GPU")
        free = int(total) - int(used)
        gpus.append(LocalGpu(name=name, driver_memory_bytes=int(total), free_bytes=free, reserved_bytes=0))
    return tuple(gpus)


def _devices(answer: object) -> list[Mapping[str, object]]:
    """The per-device records of amd-smi: a bare list, or under `gpu_data` in newer versions."""
    records = answer.get("gpu_data", []) if isinstance(answer, dict) else answer
    return [_mapping(record) for record in records] if isinstance(records, list) else []


def _amd_bytes(figure: object) -> int | None:
    """Read amd-smi's `{"value": 196592, "unit": "MB"}`, whose MB are MiB."""
    value = _mapping(figure).get("value")
    return int(value) * MIB if isinstance(value, (int, float)) else None


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}


def _json(program: str, *arguments: str) -> object:
    output = _run(program, *arguments)
    try:
        return json.loads(output) if output else None
    except ValueError:
        return None


def _run(program: str, *arguments: str) -> str | None:
    """Return what a program prints, or None when it is not there, fails, or does not end."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout if done.returncode == 0 else None
