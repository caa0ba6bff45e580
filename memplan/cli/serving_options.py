"""The options that `estimate`, `plan` and `emit-config` share, and what they become: models, GPUs and
ServingSettings.
"""

from __future__ import annotations

import re

from memplan.cli.options import LLAMA_CPP_OPTIONS, Given
from memplan.domain.gpu import GpuSpec
from memplan.domain.serving import LoraSettings, ParallelLayout, ServingSettings, Workload
from memplan.errors import UsageError
from memplan.records import dataclass, replace
from memplan.units import GIB, format_gib, parse_count, parse_size_bytes

# What stands before the x of a name such as RTX4090, GTX1080 or GX10, where it is no sign of a count.
_X_NAMES = ("rt", "gt", "g")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU type that was asked for, and how many of them (None: what the layout needs)."""

    gpu: GpuSpec
    count: int | None = None
    free_bytes: int | None = None


def parse_devices(names: str | None, *, memory: str | None, free: str | None) -> tuple[Device, ...]:
    """Return the devices that `--gpu`, `--gpu-memory` and `--gpu-free` name; none when no option is given.

    Raises: UsageError for an unknown name or a bad size; MissingExtra for `auto` without a driver.
    """
    memory_bytes = parse_size_bytes(memory, what="--gpu-memory") if memory else None
    free_bytes = parse_size_bytes(free, what="--gpu-free") if free else None
    if names is None and memory_bytes is None and free_bytes:
        raise UsageError("--gpu-free without a GPU", hint="name one with --gpu, or its size with --gpu-memory")
    devices: tuple[Device, ...]
    if names is None:
        devices = (Device(gpu=unnamed_gpu(memory_bytes)),) if memory_bytes else ()
    else:
        devices = tuple(device for name in split_names(names, "--gpu") for device in _devices(name))
        if memory_bytes:
            devices = tuple(replace(device, gpu=_sized(device.gpu, memory_bytes)) for device in devices)
    if free_bytes:
        devices = tuple(_partly_free(device, free_bytes) for device in devices)
    return devices


def listed(given: Given, name: str) -> tuple[str, ...]:
    """The comma-separated names of an option; none when it was not given. Raises: UsageError when it is empty."""
    return split_names(given[name], _flag(name)) if name in given else ()


def split_names(text: str, flag: str) -> tuple[str, ...]:
    """Split names at commas. Raises: UsageError when there is none, as from a shell variable that is not set."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError(f"{flag} is empty: `{text}`", hint=f"name one, or leave {flag} out")
    return names


def _partly_free(device: Device, free_bytes: int) -> Device:
    if free_bytes > device.gpu.visible_high_bytes:
        size = format_gib(device.gpu.memory_bytes)
        raise UsageError(
            f"--gpu-free is more than a {device.gpu.name} has: {format_gib(free_bytes)} of {size}",
            hint="--gpu-memory says how large the card is",
        )
    return replace(device, free_bytes=free_bytes)


def unnamed_gpu(memory_bytes: int) -> GpuSpec:
    """A GPU of which only the memory is known: the card that has this total, else a current NVIDIA card of that
    size.
    """
    from memplan.catalog.memory_classes import likely_card

    name = likely_card(memory_bytes)
    if name is not None:
        from memplan.catalog.gpus import find_gpu

        size = format_gib(memory_bytes)
        return replace(_sized(find_gpu(name), memory_bytes), resolved_note=f"{size} taken as the memory of a {name}")
    return GpuSpec(
        name=f"gpu-{memory_bytes / GIB:.0f}g",
        vendor="nvidia",
        architecture="unknown",
        memory_bytes=memory_bytes,
        driver_memory_bytes=None,
        visible_low_bytes=memory_bytes,
        visible_high_bytes=memory_bytes,
        provenance="given",
        source="--gpu-memory",
    )


def _sized(gpu: GpuSpec, memory_bytes: int) -> GpuSpec:
    return replace(
        gpu,
        memory_bytes=memory_bytes,
        visible_low_bytes=memory_bytes,
        visible_high_bytes=memory_bytes,
        provenance="given",
    )


def _devices(name: str) -> tuple[Device, ...]:
    if name.lower() == "auto":
        return _local_devices()
    from memplan.catalog.gpus import find_gpu

    base, count = split_count(name)
    return (Device(gpu=find_gpu(base), count=count),)


def split_count(name: str) -> tuple[str, int | None]:
    """Split `h100x8` into the name and the count. A name that the catalogue has as it stands keeps its x and
    digits.
    """
    head, letter, digits = name.rpartition("x")
    last_word = re.split(r"[\s_-]", head.rstrip(" *").lower())[-1]
    if not letter or not digits.isdigit() or last_word in ("", *_X_NAMES):
        return name, None
    count = int(digits)
    if not 1 <= count <= 4096:
        raise UsageError(f"a number of GPUs out of range: `{name}`", hint="write a100-80gx4 for four of them")
    return head.rstrip(" *"), count


def _local_devices() -> tuple[Device, ...]:
    from memplan.catalog.gpus import find_gpu
    from memplan.catalog.local_gpus import read_local_gpus

    local = read_local_gpus()
    first = local[0]
    same = [device for device in local if device.name == first.name]
    try:
        gpu = _sized(find_gpu(first.name), first.total_bytes)
    except UsageError:
        gpu = replace(unnamed_gpu(first.total_bytes), name=first.name)
    return (Device(gpu=gpu, count=len(same) if len(same) > 1 else None, free_bytes=min(d.free_bytes for d in same)),)


def serving_settings(given: Given) -> ServingSettings:
    """Return what the options say, with every number checked.

    Raises: UsageError for a value that is no number, or out of its range.
    """
    return ServingSettings(
        layout=ParallelLayout(
            tensor=_ranks(given, "tp"),
            pipeline=_ranks(given, "pp"),
            data=_ranks(given, "dp"),
            expert=given.get("ep", False),
        ),
        workload=Workload(
            context_tokens=_count(given, "context"),
            concurrency=_count(given, "concurrency") or 1,
            mean_tokens=_count(given, "mean_length"),
        ),
        dtype=given.get("dtype"),
        kv_dtype=given.get("kv_dtype"),
        max_num_seqs=_count(given, "max_num_seqs"),
        max_num_batched_tokens=_count(given, "max_num_batched_tokens"),
        gpu_memory_utilization=_fraction(given, "gpu_memory_utilization"),
        kv_cache_memory_bytes=_size(given, "kv_cache_memory"),
        block_size=_whole(given, "block_size", 1, 65536),
        eager=given.get("eager"),
        chunked_prefill=given.get("chunked_prefill"),
        prefix_caching=given.get("prefix_caching"),
        weight_offload_bytes=_size(given, "cpu_offload") or 0,
        media_per_prompt=_media_limits(given.get("limit_mm")),
        language_model_only=given.get("language_model_only", False),
        prompt_logprobs=given.get("prompt_logprobs", False),
        lora=LoraSettings(
            max_loras=_whole(given, "max_loras", 0, 4096) or 0,
            max_rank=_whole(given, "max_lora_rank", 1, 4096) or 16,
        ),
        num_speculative_tokens=_whole(given, "num_speculative_tokens", 0, 64) or 0,
        kv_keep_fraction=_fraction(given, "kv_keep") or 1.0,
        offline_batch=given.get("offline_batch", False),
        engine_options=_engine_options(given),
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _ranks(given: Given, name: str) -> int:
    return _whole(given, name, 1, 4096) or 1


def _whole(given: Given, name: str, least: int, most: int) -> int | None:
    number: int | None = given.get(name)
    if number is not None and not least <= number <= most:
        raise UsageError(f"{_flag(name)} out of range: {number}", hint=f"it must be between {least} and {most}")
    return number


def _fraction(given: Given, name: str) -> float | None:
    number: float | None = given.get(name)
    if number is not None and not 0 < number <= 1:
        raise UsageError(f"{_flag(name)} out of range: {number}", hint="it must be above 0 and at most 1")
    return number


def _size(given: Given, name: str) -> int | None:
    return parse_size_bytes(given[name], what=_flag(name)) if name in given else None


def _count(given: Given, name: str) -> int | None:
    return parse_count(given[name], what=_flag(name)) if name in given else None


def _media_limits(text: str | None) -> dict[str, int] | None:
    """Read `image=2,video=0`."""
    if not text:
        return None
    limits: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if name.strip() not in ("image", "video", "audio") or not number.strip().isdigit():
            raise UsageError(f"not a media limit: `{part}`", hint="write --limit-mm image=2,video=0")
        limits[name.strip()] = int(number)
    return limits


def _engine_options(given: Given) -> dict[str, object]:
    """Engine options that have a flag of their own, and repeated `--set KEY=VALUE`: numbers, true and false become
    what they say.
    """
    options: dict[str, object] = {
        option.name: _scalar(given[option.name]) for option in LLAMA_CPP_OPTIONS if option.name in given
    }
    for pair in given.get("set", ()):
        key, separator, value = pair.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"not an engine option: `{pair}`", hint="write --set KEY=VALUE")
        options[key.strip().lstrip("-").replace("-", "_")] = _scalar(value.strip())
    return options


def _scalar(text: str) -> object:
    lowered = text.lower()
    if lowered in ("true", "yes", "on"):
        return True
    if lowered in ("false", "no", "off"):
        return False
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
