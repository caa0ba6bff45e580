"""The options that `estimate`, `plan` and `emit-config` share, and what they become: models, GPUs and
ServingSettings.
"""

from __future__ import annotations

from memplan.domain.gpu import GpuSpec
from memplan.domain.serving import LoraSettings, ParallelLayout, ServingSettings, Workload
from memplan.errors import UsageError
from memplan.records import dataclass, replace
from memplan.units import GIB, format_gib, parse_count, parse_size_bytes


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
    if not names:
        return (Device(gpu=unnamed_gpu(memory_bytes), free_bytes=free_bytes),) if memory_bytes else ()
    devices = tuple(device for name in names.split(",") if name.strip() for device in _devices(name.strip()))
    if memory_bytes:
        devices = tuple(replace(device, gpu=_sized(device.gpu, memory_bytes)) for device in devices)
    if free_bytes:
        devices = tuple(replace(device, free_bytes=free_bytes) for device in devices)
    return devices


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
    if (
        not letter
        or not digits.isdigit()
        or not head
        or head.endswith(("-", "rt", "g"))
        or head.lower() in ("rt", "gt")
    ):
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


def serving_settings(
    *,
    tensor: int,
    pipeline: int,
    data: int,
    expert: bool,
    context: str | None,
    concurrency: str,
    mean_length: str | None,
    dtype: str | None,
    kv_dtype: str | None,
    max_num_seqs: str | None,
    max_num_batched_tokens: str | None,
    gpu_memory_utilization: float | None,
    kv_cache_memory: str | None,
    block_size: int | None,
    eager: bool | None,
    chunked_prefill: bool | None,
    prefix_caching: bool | None,
    weight_offload: str | None,
    media_limits: str | None,
    language_model_only: bool,
    prompt_logprobs: bool,
    max_loras: int,
    max_lora_rank: int,
    num_speculative_tokens: int,
    kv_keep: float,
    offline_batch: bool,
    engine_options: tuple[str, ...],
) -> ServingSettings:
    """Return what the options say, with every number checked.

    Raises: UsageError for a value that is no number, or out of its range.
    """
    for flag, number in (("--tp", tensor), ("--pp", pipeline), ("--dp", data)):
        if not 1 <= number <= 4096:
            raise UsageError(f"{flag} out of range: {number}", hint="it must be between 1 and 4096")
    if gpu_memory_utilization is not None and not 0 < gpu_memory_utilization <= 1:
        raise UsageError(
            f"--gpu-memory-utilization out of range: {gpu_memory_utilization}", hint="it must be above 0 and at most 1"
        )
    if not 0 < kv_keep <= 1:
        raise UsageError(f"--kv-keep out of range: {kv_keep}", hint="it must be above 0 and at most 1")
    return ServingSettings(
        layout=ParallelLayout(tensor=tensor, pipeline=pipeline, data=data, expert=expert),
        workload=Workload(
            context_tokens=_count(context, "--context"),
            concurrency=parse_count(concurrency, what="--concurrency"),
            mean_tokens=_count(mean_length, "--mean-length"),
        ),
        dtype=dtype,
        kv_dtype=kv_dtype,
        max_num_seqs=_count(max_num_seqs, "--max-num-seqs"),
        max_num_batched_tokens=_count(max_num_batched_tokens, "--max-num-batched-tokens"),
        gpu_memory_utilization=gpu_memory_utilization,
        kv_cache_memory_bytes=parse_size_bytes(kv_cache_memory, what="--kv-cache-memory") if kv_cache_memory else None,
        block_size=_block_size(block_size),
        eager=eager,
        chunked_prefill=chunked_prefill,
        prefix_caching=prefix_caching,
        weight_offload_bytes=parse_size_bytes(weight_offload, what="--cpu-offload") if weight_offload else 0,
        media_per_prompt=_media_limits(media_limits),
        language_model_only=language_model_only,
        prompt_logprobs=prompt_logprobs,
        lora=LoraSettings(max_loras=max_loras, max_rank=max_lora_rank),
        num_speculative_tokens=num_speculative_tokens,
        kv_keep_fraction=kv_keep,
        offline_batch=offline_batch,
        engine_options=_engine_options(engine_options),
    )


def _count(text: str | None, flag: str) -> int | None:
    return parse_count(text, what=flag) if text is not None else None


def _block_size(block_size: int | None) -> int | None:
    if block_size is not None and not 1 <= block_size <= 65536:
        raise UsageError(f"--block-size out of range: {block_size}", hint="use 16, 32, 64 or 128")
    return block_size


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


def _engine_options(pairs: tuple[str, ...]) -> dict[str, object]:
    """Read repeated `KEY=VALUE`: numbers and true or false become what they say."""
    options: dict[str, object] = {}
    for pair in pairs:
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
