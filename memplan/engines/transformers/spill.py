"""What lies where, in words: the layers and bytes of every GPU, of the host and of the disk."""

from __future__ import annotations

from memplan.catalog.rules import Rules
from memplan.domain.model import ModelSpec
from memplan.engines.transformers.loading import is_stacked, loader_of
from memplan.engines.transformers.placement import CPU, DISK
from memplan.engines.transformers.plan import DevicePlan, Placed
from memplan.engines.transformers.settings import TransformersSettings
from memplan.units import format_gib

_PLACES = {CPU: "in the host's memory", DISK: "on disk"}


def layers_by_device(placed: Placed, plans: list[DevicePlan]) -> dict[str, object]:
    """Every device with its layers, as ranges, and its bytes of weights; GPUs also with their fullest moment."""
    used = {plan.holding.number: plan.used_bytes for plan in plans}
    found: dict[str, object] = {}
    for device, size in sorted(placed.sizes.items(), key=lambda pair: (isinstance(pair[0], str), str(pair[0]))):
        name = f"gpu {device}" if isinstance(device, int) else device
        entry: dict[str, object] = {"layers": _ranges(placed, device), "weights_bytes": size}
        if isinstance(device, int):
            entry["used_bytes"] = used.get(device, size)
        found[name] = entry
    return found


def _ranges(placed: Placed, device: object) -> list[list[int]]:
    """The layers of a device as first and last of each unbroken run."""
    ranges: list[list[int]] = []
    for index, other in enumerate(placed.layers):
        if other != device:
            continue
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ranges


def describe_placement(placed: Placed) -> str:
    """One sentence on which layers lie where, and how much they weigh."""
    parts = []
    for device in sorted(placed.sizes, key=lambda one: (isinstance(one, str), str(one))):
        where = f"on GPU {device}" if isinstance(device, int) else _PLACES[device]
        ranges = _ranges(placed, device)
        layers = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in ranges)
        parts.append(f"{f'layers {layers}' if layers else 'no layer'} {where} ({format_gib(placed.sizes[device])})")
    return "; ".join(parts)


def describe_spill(placed: Placed) -> str:
    """One sentence on what does not lie on a GPU; empty when everything does."""
    if not placed.spilled_bytes:
        return ""
    parts = []
    for device in (CPU, DISK):
        size = placed.sizes.get(device, 0)
        if size:
            layers = sum(other == device for other in placed.layers)
            what = f"{layers} of {len(placed.layers)} layers" if layers else "parts outside the layers"
            parts.append(f"{what} ({format_gib(size)}) stay {_PLACES[device]}")
    return " and ".join(parts) + ", and are copied to the GPU for every token: slow"


def refuses_spill(spec: ModelSpec, placed: Placed, rules: Rules) -> str:
    """Why a model with parts on the host is not loaded at all; empty when it is."""
    if not placed.spilled_bytes or not spec.quantization or not loader_of(spec.quantization).on_gpu:
        return ""
    if rules["plain_parts_may_spill"] and all(isinstance(device, int) for device in placed.layers):
        return ""
    return f"{spec.quantization} weights must lie on GPUs, {format_gib(placed.spilled_bytes)} of them do not"


def needs_folder(spec: ModelSpec, placed: Placed, settings: TransformersSettings, rules: Rules) -> bool:
    """Whether weights on disk have to be written anew: stacked experts are not in the checkpoint as they are used.

    Other weights are read from the checkpoint's own files.
    """
    if settings.has_disk or not placed.sizes.get(DISK):
        return False
    on_disk = {id(layer): layer for layer, device in zip(spec.layers, placed.layers, strict=True) if device == DISK}
    return any(is_stacked(tensor, rules) for layer in on_disk.values() for tensor in layer.tensors)
