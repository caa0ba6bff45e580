"""GPUs by name: the entries of gpus.yaml as GpuSpec, MIG slices and sized devices included.

Names are matched without case and punctuation, as the catalogue, the driver or a person spells them: `a100-80g`,
`NVIDIA A100-SXM4-80GB`, `4090`, `h100:1g.10gb`, `NVIDIA H100 80GB HBM3 MIG 1g.10gb`, `m4-max:64g`.
Only the entry that is asked for is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from memplan.catalog.slices import Slices, read_slices
from memplan.domain.gpu import GpuSpec, Price
from memplan.errors import UsageError, did_you_mean
from memplan.records import replace
from memplan.units import GIB, MIB

GPUS_FILE = Path(__file__).with_name("gpus.yaml")

# What an NVIDIA driver on Linux keeps back from the total that it prints.
# Fitted: benchmarks/catalogue/fit_visible_memory.py, 55 cards, median error 0.15 %, 90th percentile 0.75 %.
RESERVE_MIB = 387
RESERVE_PER_MIB = 0.00255
# What a MIG slice of so many eighths of the memory shows, over its part of the whole slice (same script).
SLICE_SHARES = {1: 0.962, 2: 0.989, 4: 0.996, 8: 1.0}
# How far a total that was derived, or read off one driver, has been seen to move with the driver.
_DERIVED_LOW, _DERIVED_HIGH = 0.9925, 1.01
# What a process may take of a machine's own memory. Assumed: firmware and kernel keep 3 %, other programs 1 GiB.
_HOST_PART, _SYSTEM_MIB = 0.97, 1024
_SLICE_LOW, _SLICE_HIGH = 0.987, 1.008

_USUAL = (
    "t4", "l4", "a10g", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-a6000", "l40s", "rtx-pro-6000", "a100-40g", "a100-80g",
    "h100", "h200", "b200", "b300", "mi300x", "mi355x",
)  # fmt: skip

_VENDORS = frozenset(
    ("nvidia", "geforce", "tesla", "amd", "ati", "radeon", "instinct", "intel", "apple", "google", "aws")
)
_FILLERS = frozenset(("gpu", "graphics", "generation", "edition"))
_SLICE = re.compile(r"(?P<base>.+?)(?:\s*:\s*|[\s-]+mig[\s-]+)(?P<slice>\d+g(?:\.\d+gb)?b?)", re.IGNORECASE)
_SIZED = re.compile(r"(?P<base>.+)-(?P<size>\d+)g")


def find_gpu(name: str) -> GpuSpec:
    """Return the GPU that `name` means. A name that could mean several gives the commonest, with a `resolved_note`.

    Raises: UsageError when no GPU has that name, or the GPU has no such slice; the hint names the nearest.
    """
    slices = _slices()
    split = _SLICE.fullmatch(name.strip())
    base, part = (split["base"], split["slice"].lower()) if split else (name, None)
    plain = plain_name(base)
    found = slices.find_name(plain)
    if found is None and part is None and (sized := _SIZED.fullmatch(plain)):
        return _find_sized(slices, name, sized["base"], int(sized["size"]))
    if found is None:
        raise _unknown(slices, name)
    key, how = found
    spec = _read(slices, key, resolved_note=_taken_as(slices, name, key) if how == "bare" else "")
    return _slice_of(spec, _entry(slices, key), part) if part else spec


def list_gpus() -> tuple[GpuSpec, ...]:
    """Return every device of the catalogue, without their slices, in the file's order."""
    slices = _slices()
    return tuple(_read(slices, key) for key in slices.entry_keys())


def usual_gpus() -> tuple[GpuSpec, ...]:
    """Return the cards that people rent or buy for serving, the smallest first."""
    specs = [find_gpu(name) for name in _USUAL]
    return tuple(sorted(specs, key=lambda spec: spec.memory_bytes))


def search_gpus(text: str) -> tuple[GpuSpec, ...]:
    """Return the devices whose name, aliases, vendor or architecture have every word of `text`."""
    words = text.lower().split()
    return tuple(spec for spec in list_gpus() if all(_mentions(spec, word) for word in words))


def plain_name(name: str) -> str:
    """Return a name without vendor, brackets and filler words, sizes as `80g`: `NVIDIA L40S 48GB` is `l40s-48g`."""
    text = re.sub(r"\([^)]*\)", " ", name.lower())
    text = re.sub(r"\b(\d+) ?gi?b\b", r"\1g", text)
    return "-".join(word for word in re.split(r"[\s_/,-]+", text) if word and word not in _VENDORS | _FILLERS)


def derived_visible_mib(driver_mib: int) -> int:
    """Return what CUDA sees on a Linux driver that prints `driver_mib` as the card's total, by the fitted rule."""
    return round(driver_mib - RESERVE_MIB - RESERVE_PER_MIB * driver_mib)


def _slices() -> Slices:
    return read_slices(GPUS_FILE, ignored=b"-_/")


def _entry(slices: Slices, key: str) -> Mapping[str, object]:
    entry = slices.entry(key)
    if entry is None:
        raise UsageError(f"{slices.origin} has no entry `{key}`")
    return entry


def _read(slices: Slices, key: str, *, resolved_note: str = "") -> GpuSpec:
    entry = _entry(slices, key)
    chip = _mapping(entry, "chip")
    rates = _mapping(entry, "rates")
    link = _mapping(entry, "link")
    memory = _mapping(entry, "memory")
    visible, low, high, provenance = _visible_mib(slices, memory)
    driver = cast("int | None", memory.get("driver_mib"))
    tflops = _mapping(rates, "tflops")
    bandwidth = cast("float | None", rates.get("bandwidth_gb_per_s"))
    link_speed = cast("float | None", link.get("gb_per_s"))
    return GpuSpec(
        name=key,
        title=str(entry["name"]),
        aliases=tuple(str(alias) for alias in cast("list[object]", entry.get("aliases", []))),
        vendor=str(chip["vendor"]),
        architecture=str(chip["generation"]),
        memory_bytes=visible * MIB,
        driver_memory_bytes=driver * MIB if driver else None,
        visible_low_bytes=low * MIB,
        visible_high_bytes=high * MIB,
        nominal_memory_bytes=int(cast("float", memory["nominal_gib"]) * GIB),
        compute_capability=_optional_text(chip, "compute"),
        num_multiprocessors=cast("int | None", chip.get("sms")),
        bandwidth_bytes_per_s=bandwidth * 1e9 if bandwidth else None,
        flops_per_s={dtype: cast("float", value) * 1e12 for dtype, value in tflops.items()} or None,
        interconnect=_optional_text(link, "kind"),
        interconnect_bytes_per_s=link_speed * 1e9 if link_speed else None,
        pcie=_optional_text(chip, "pcie"),
        power_watts=cast("float | None", chip.get("tdp_w")),
        price=_price(_mapping(entry, "price")),
        mig_profiles=tuple(_mapping(entry, "mig_gib")),
        provenance=provenance,
        source=str(entry["source"]),
        note=str(entry.get("note", "")),
        resolved_note=resolved_note,
    )


def _visible_mib(slices: Slices, memory: Mapping[str, object]) -> tuple[int, int, int, str]:
    """Return visible, lowest and highest total, and its provenance."""
    if "like" in memory:
        sibling = _mapping(_entry(slices, str(memory["like"])), "memory")
        return (*_visible_mib(slices, sibling)[:3], "derived")
    low, high = (cast("int | None", memory.get(name)) for name in ("low_mib", "high_mib"))
    if "visible_mib" in memory:
        visible = cast("int", memory["visible_mib"])
        return visible, low or visible, high or visible, "measured"
    nominal_mib = round(cast("float", memory["nominal_gib"]) * 1024)
    rule = memory.get("rule")
    if rule == "amd":
        visible = nominal_mib - 16
        return visible, low or visible, high or visible, "derived"
    if rule == "metal":
        visible = _metal_mib(nominal_mib)
        return visible, visible, visible, "derived"
    if rule == "host":
        usable = _host_mib(nominal_mib)
        return usable, usable, nominal_mib, "derived"
    if rule == "nominal":
        return nominal_mib, round(nominal_mib * 0.95), nominal_mib, "derived"
    driver_mib = cast("int", memory["driver_mib"])
    visible = derived_visible_mib(driver_mib)
    highest = min(driver_mib, round(visible * _DERIVED_HIGH))
    return visible, low or round(visible * _DERIVED_LOW), high or highest, "derived"


def _host_mib(installed_mib: int) -> int:
    """What is left of a machine's memory for a server that runs on its CPU."""
    return round(installed_mib * _HOST_PART) - _SYSTEM_MIB


def _metal_mib(installed_mib: int) -> int:
    """What Metal recommends a process to stay under: two thirds of up to 32 GiB, three quarters of more.

    Source: recommendedMaxWorkingSetSize as llama.cpp prints it: 11453 MB on 16 GiB, 17180 MB on 24 GiB.
    """
    return installed_mib * 2 // 3 if installed_mib <= 32 * 1024 else installed_mib * 3 // 4


def _slice_of(spec: GpuSpec, entry: Mapping[str, object], part: str) -> GpuSpec:
    """Return a MIG slice of a GPU, or a device with shared memory in one of its sizes."""
    if part in spec.mig_profiles:
        listed = _mapping(entry, "mig_gib")
        return _mig_slice(spec, part, cast("float | None", listed[part]))
    sizes = cast("list[int]", entry.get("sizes_gib", []))
    size = part.removesuffix("b").removesuffix("g")
    if size.isdigit() and int(size) in sizes:
        usable_mib = _host_mib if spec.vendor == "cpu" else _metal_mib
        visible_bytes = usable_mib(int(size) * 1024) * MIB
        return replace(
            spec,
            name=f"{spec.name}:{size}g",
            memory_bytes=visible_bytes,
            visible_low_bytes=visible_bytes,
            visible_high_bytes=visible_bytes,
            nominal_memory_bytes=int(size) * GIB,
        )
    known = [*spec.mig_profiles, *(f"{size}g" for size in sizes)]
    hint = f"{spec.name} has {', '.join(known)}" if known else f"{spec.name} cannot be divided"
    raise UsageError(f"unknown slice of {spec.name}: `{part}`", hint=hint)


def _mig_slice(spec: GpuSpec, profile: str, listed_gib: float | None) -> GpuSpec:
    """Return one MIG instance: its memory as listed, or its share of the card; rates by its parts of the card.

    Source: NVIDIA's MIG user guide for the fractions. Not modelled: the SMs that a card loses in MIG mode.
    """
    whole = max(spec.mig_profiles, key=_profile_gib)
    eighths = max(1, round(8 * _profile_gib(profile) / _profile_gib(whole)))
    compute = int(profile.split("g.")[0]) / int(whole.split("g.")[0])
    if listed_gib:  # a listing may be of another driver than the card's own total, which it cannot exceed
        memory_bytes = min(int(listed_gib * GIB), spec.memory_bytes)
    else:
        memory_bytes = int(spec.memory_bytes * eighths / 8 * SLICE_SHARES[eighths])
    return replace(
        spec,
        name=f"{spec.name}:{profile}",
        title=f"{spec.title} MIG {profile}",
        aliases=(),
        memory_bytes=memory_bytes,
        driver_memory_bytes=None,
        visible_low_bytes=int(memory_bytes * (_SLICE_LOW if listed_gib else 0.92)),
        visible_high_bytes=int(memory_bytes * (_SLICE_HIGH if listed_gib else 1.02)),
        nominal_memory_bytes=_profile_gib(profile) * GIB,
        bandwidth_bytes_per_s=spec.bandwidth_bytes_per_s and spec.bandwidth_bytes_per_s * eighths / 8,
        flops_per_s=spec.flops_per_s and {dtype: rate * compute for dtype, rate in spec.flops_per_s.items()},
        interconnect=None,
        interconnect_bytes_per_s=None,
        price=None,
        mig_profiles=(),
        provenance="measured" if listed_gib else "derived",
        note="a MIG instance: it has no peer-to-peer link to other GPUs",
    )


def _profile_gib(profile: str) -> int:
    return int(profile.split(".")[1].removesuffix("gb"))


def _find_sized(slices: Slices, name: str, base: str, size_gib: int) -> GpuSpec:
    """Return the GPU of a name that ends in its memory, such as `titan-rtx-24g`, when the memory agrees."""
    found = slices.find_name(base)
    if found is None:
        raise _unknown(slices, name)
    entry = _entry(slices, found[0])
    if size_gib in cast("list[int]", entry.get("sizes_gib", [])):
        return _slice_of(_read(slices, found[0]), entry, f"{size_gib}g")
    nominal_gib = cast("float", _mapping(entry, "memory")["nominal_gib"])
    if abs(size_gib - nominal_gib) > 0.07 * nominal_gib:
        hint = f"{found[0]} has {nominal_gib:g} GB; for another size give --gpu-memory"
        raise UsageError(f"unknown GPU: `{name}`", hint=hint)
    return _read(slices, found[0])


def _taken_as(slices: Slices, name: str, key: str) -> str:
    stem = plain_name(name)
    others = [other for other in slices.entry_keys() if other != key and other.startswith(f"{stem}-")]
    also = f"; there is also {', '.join(others)}" if others else ""
    return f"{name}: taken as {key}, the commonest{also}"


def _unknown(slices: Slices, name: str) -> UsageError:
    known = sorted({alias for _, _, alias in slices.names()})
    hint = did_you_mean(plain_name(name), known) or "`memplan gpus` lists the names; --gpu-memory takes any size"
    return UsageError(f"unknown GPU: `{name}`", hint=hint)


def _mentions(spec: GpuSpec, word: str) -> bool:
    return any(word in text.lower() for text in (spec.name, spec.title, spec.vendor, spec.architecture, *spec.aliases))


def _mapping(entry: Mapping[str, object], key: str) -> Mapping[str, object]:
    return cast("Mapping[str, object]", entry.get(key) or {})


def _optional_text(entry: Mapping[str, object], key: str) -> str | None:
    return str(entry[key]) if key in entry else None


def _price(entry: Mapping[str, object]) -> Price | None:
    if not entry:
        return None
    low, high = cast("float", entry["low_usd_per_h"]), cast("float", entry["high_usd_per_h"])
    return Price(low=low, high=high, source=str(entry["source"]))
