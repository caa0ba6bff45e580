"""From given options to profiles to make: every batch, length and attention kernel that was named, on one device."""

from __future__ import annotations

import sys
from typing import Any, cast, get_args

from memplan.cli.options import Given
from memplan.cli.serving_options import Device as NamedGpu
from memplan.cli.serving_options import listed, parse_devices
from memplan.domain.dtypes import DType, parse_compute_dtype
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.timeline import Device, Phase
from memplan.errors import MissingExtra, UnsupportedModel, UsageError, did_you_mean
from memplan.profile.request import CACHE_KINDS, EXECUTIONS, KERNELS, OPTIMIZERS, ProfileRequest, Weights, parse_phases
from memplan.records import dataclass
from memplan.units import parse_count

_USUAL_PROMPT = 2048
_USUAL_OUTPUT = 128
_MOST_PROFILES = 64
_MOST_RANKS = 64
_MOST_SIMULATED_RANKS = 4096
# What an estimate or a plan may have left behind and a profile does not run.
_NOT_RUN = ("quant", "kv_dtype", "tp", "pp", "dp", "ep", "draft_model", "kv_keep", "cpu_offload")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedProfiles:
    """What a command line asks: the profiles to make, and the GPU that they stand for, if one was named."""

    requests: tuple[ProfileRequest, ...]
    gpu: GpuSpec | None
    spec: ModelSpec | None


def ask_profiles(given: Given, *, remembered: frozenset[str] = frozenset()) -> AskedProfiles:
    """Read a command's options into profiles to make; those in `remembered` are left from an earlier command.

    Raises: MemplanError for a bad value, an unknown name or a model that cannot be read.
    """
    phases = parse_phases(given["phase"]) if "phase" in given else None
    named = _gpu(given)
    device = _device(given, named)
    spec = _spec(given)
    if phases is None:
        phases = parse_phases("inference" if spec is None or spec.is_generative else "load,forward")
    writes = not {"decode", "generate"}.isdisjoint(phases)
    gpu = named.gpu if named else None
    fixed: dict[str, Any] = {
        "model": given["model"],
        "device": device,
        "phases": phases,
        "output_tokens": _count(given, "output_tokens") or _USUAL_OUTPUT,
        "resolution": given.get("resolution"),
        "images": given.get("images") or 0,
        "dtype": parse_compute_dtype(given.get("dtype", "auto")),
        "weights": _word(given, "weights", get_args(Weights)),
        "cache": _word(given, "cache", CACHE_KINDS),
        "optimizer": _word(given, "optimizer", OPTIMIZERS),
        "checkpointing": given.get("checkpointing"),
        "lora_rank": given.get("lora_rank"),
        "lora_targets": listed(given, "lora_targets") if "lora_targets" in given else None,
        "iterations": given.get("iterations"),
        "warmup": given.get("warmup", 1 if device == "cuda" else None),
        "allocator": given.get("allocator"),
        "capacity_bytes": _capacity(named) if device == "simulated" else None,
        "compute_capability": _capability(gpu),
        "revision": given.get("revision"),
        "offline": given.get("offline"),
        "trust_remote_code": given.get("trust_remote_code"),
    }
    fixed |= _sharing(given, device, remembered)
    fixed = {name: value for name, value in fixed.items() if value is not None}
    requests = [
        ProfileRequest(**{**fixed, **run}, batch=batch, prompt_tokens=prompt, attention=cast("Any", kernel))
        for run in _executions(given, phases)
        for kernel in _words(given, "attention", KERNELS)
        for batch in _batches(given)
        for prompt in _prompts(given, spec, fixed["output_tokens"], writes=writes)
    ]
    if len(requests) > _MOST_PROFILES:
        raise UsageError(f"too many profiles: {len(requests)}", hint=f"name at most {_MOST_PROFILES} of them")
    _say_what_is_left_out({**given, "tp": None} if fixed.get("sharing") == "tp" else given)
    return AskedProfiles(requests=tuple(requests), gpu=gpu, spec=spec)


def _executions(given: Given, phases: tuple[Phase, ...]) -> list[dict[str, Any]]:
    """The settings of each way to run the code that was named.

    What is not run as it is written has a first run to show; a graph wants a cache that stays where it is.

    Raises: UsageError for an unknown one.
    """
    implied = "execution" not in given and "capture" in phases
    named = ("graph",) if implied else _words(given, "execution", EXECUTIONS)
    if given.get("save_correction") and named != ("eager",):
        raise UsageError("--save-correction is of code run as it is written", hint="leave out --execution and capture")
    found: list[dict[str, Any]] = []
    for kind in named:
        settings: dict[str, Any] = {"execution": kind}
        if named != ("eager",):
            settings |= {"iterations": given.get("iterations", 2), "warmup": given.get("warmup", 0)}
        if kind == "graph" and "cache" not in given:
            settings["cache"] = "static"
        if kind != "graph" and "graph" in named:
            settings["phases"] = tuple(each for each in phases if each != "capture")
        found.append(settings)
    return found


def _gpu(given: Given) -> NamedGpu | None:
    devices = parse_devices(given.get("gpu"), memory=given.get("gpu_memory"), free=given.get("gpu_free"))
    if len(devices) > 1:
        print(f"note: profiled as {devices[0].gpu.name}, the first GPU that was named", file=sys.stderr)
    elif devices and (devices[0].count or 1) > 1:
        print(f"note: profiled on one {devices[0].gpu.name} of {devices[0].count}", file=sys.stderr)
    return devices[0] if devices else None


def _device(given: Given, named: NamedGpu | None) -> Device:
    """The device that was asked for; without a word, a GPU of this machine if it is the one that is meant.

    Raises: MissingExtra when a GPU is asked for and there is none.
    """
    from memplan.catalog.local_gpus import read_local_gpus

    if "device" in given:
        device = cast("Device", _word(given, "device", get_args(Device)))
        if device == "cuda":
            read_local_gpus()
        return device
    try:
        local = read_local_gpus()[0].name
    except MissingExtra:
        return "simulated"
    if named is None:
        return "cuda"
    from memplan.catalog.gpus import find_gpu

    try:
        return "cuda" if find_gpu(local).name == named.gpu.name else "simulated"
    except UsageError:
        return "simulated"


def _spec(given: Given) -> ModelSpec | None:
    """The model's facts; None where only transformers understands it. Raises: SourceError when it cannot be read."""
    from memplan.pipeline import load_model

    try:
        return load_model(
            given["model"],
            revision=given.get("revision"),
            offline=given.get("offline", False),
            introspect="auto",
            trust_remote_code=given.get("trust_remote_code", False),
        )
    except UnsupportedModel:
        return None


def _capacity(named: NamedGpu | None) -> int | None:
    if named is None:
        return None
    return min(named.gpu.memory_bytes, named.free_bytes or named.gpu.memory_bytes)


def _sharing(given: Given, device: Device, remembered: frozenset[str]) -> dict[str, Any]:
    """How many processes share the model, and how. Raises: UsageError."""
    named = [name for name in ("ddp", "fsdp", "tp") if name in given]
    if "tp" in remembered and (device != "simulated" or len(named) > 1):
        named.remove("tp")
    if len(named) > 1:
        raise UsageError(f"{' and '.join(f'--{name}' for name in named)} exclude each other", hint="give one of them")
    found: dict[str, Any] = {"reshard": given.get("reshard"), "bucket_view": given.get("bucket_view")}
    if "mixed_precision" in given:
        names = listed(given, "mixed_precision")
        if len(names) > 2:
            raise UsageError(f"not what is computed and reduced in: `{given['mixed_precision']:.60}`", hint="give bf16")
        found |= {"mixed_precision": parse_compute_dtype(names[0])} | ({} if "dtype" in given else {"dtype": DType.F32})
        found |= {"reduced_in": parse_compute_dtype(names[1])} if len(names) > 1 else {}
    if not named or (named == ["tp"] and given["tp"] == 1):
        return found
    one_process = ("save_correction",) if device == "simulated" else ("save_correction", "memory_viz")
    for option in one_process:
        if given.get(option):
            raise UsageError(f"--{option.replace('_', '-')} is of one process", hint=f"leave out --{named[0]}")
    count, most = given[named[0]], _MOST_SIMULATED_RANKS if device == "simulated" else _MOST_RANKS
    if not 1 <= count <= most:
        raise UsageError(f"not a number of processes: {count}", hint=f"give 1 to {most:,}")
    return {**found, "sharing": named[0], "num_ranks": count}


def _capability(gpu: GpuSpec | None) -> tuple[int, int] | None:
    major, _, minor = (gpu.compute_capability or "").partition(".") if gpu else ("", "", "")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _word(given: Given, name: str, among: tuple[str, ...]) -> str | None:
    return _words(given, name, among)[0] if name in given else None


def _words(given: Given, name: str, among: tuple[str, ...]) -> tuple[str, ...]:
    """The words of an option; its first known one when it was not given. Raises: UsageError for an unknown one."""
    if name not in given:
        return among[:1]
    words = tuple(word.lower() for word in listed(given, name))
    for word in words:
        if word not in among:
            hint = did_you_mean(word, list(among)) or f"use one of {', '.join(among)}"
            raise UsageError(f"not a value of --{name.replace('_', '-')}: `{word:.60}`", hint=hint)
    return words


def _batches(given: Given) -> list[int]:
    if "batch" in given:
        return [parse_count(text, what="--batch") for text in listed(given, "batch")]
    return [_count(given, "concurrency") or 1]


def _prompts(given: Given, spec: ModelSpec | None, output_tokens: int, *, writes: bool) -> list[int]:
    """The lengths of prompts: those named, else what a context leaves for them, else a usual one that fits."""
    if "prompt_tokens" in given:
        return [parse_count(text, what="--prompt-tokens") for text in listed(given, "prompt_tokens")]
    beside = output_tokens if writes else 0
    context = _count(given, "context")
    if context is not None:
        if context <= beside:
            raise UsageError(
                f"--context {context} leaves no room for a prompt beside {beside} tokens of output",
                hint="raise --context, or lower --output-tokens",
            )
        return [context - beside]
    limit = spec.max_context_tokens if spec is not None and spec.max_context_tokens else _USUAL_PROMPT + beside
    return [max(1, min(_USUAL_PROMPT, limit - beside))]


def _count(given: Given, name: str) -> int | None:
    return parse_count(given[name], what=f"--{name.replace('_', '-')}") if name in given else None


def _say_what_is_left_out(given: Given) -> None:
    names = [name for name in _NOT_RUN if given.get(name) not in (None, 1, "none", "auto", False)]
    if names:
        flags = ", ".join(f"--{name.replace('_', '-')} {given[name]}" for name in names)
        print(f"note: transformers is profiled without {flags}", file=sys.stderr)
