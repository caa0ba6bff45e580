"""Which weight format and which cache type starts on which device, in which release of an engine, with which kernel.

The facts are the tables in `servable/`, one file an engine, each format with its source; `servable_rows` says what
their keys mean. Memory is not asked here: what is refused here does not start on a card of any size.

Not modelled: kernels that an option or an environment variable chooses, builds from source, plugins, and models whose
own code refuses a quantization.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from memplan.catalog.rules import parse_release
from memplan.catalog.servable_rows import Case, Row, first_row, missed
from memplan.catalog.servable_splits import uneven_split
from memplan.catalog.tables import load_table
from memplan.domain.attention import LatentAttention
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.records import dataclass, replace

Speed = Literal["native", "emulated", "slow"]
ENGINES = ("vllm", "sglang", "tensorrt-llm", "llama.cpp", "transformers")

# A scheme's own name, without width and group, where the tables know it by another.
_FORMATS = {
    "torchao-int8": "torchao",
    "bnb-int8": "bnb-8bit",
    "bnb-nf4": "bnb-4bit",
    "bnb-nf4-dq": "bnb-4bit",
    "bnb-fp4": "bnb-4bit",
    "bnb-fp4-dq": "bnb-4bit",
}
_PATTERN = re.compile(r"([a-z]+)-int(\d+)-(?:g(\d+)|channel)")
_KV_FORMATS = {
    "bf16": "bfloat16",
    "f16": "float16",
    "fp16": "float16",
    "half": "float16",
    "f32": "float32",
    "fp32": "float32",
    "fp8_e4m3": "fp8",
    "e4m3": "fp8",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8-e5m2",
    "fp4_e2m1": "nvfp4",
    "fp8_e5m2": "fp8-e5m2",
    "fp8_ds_mla": "fp8-latent",
    "int8_per_token_head": "int8-per-head",
    "int4_per_token_head": "int4-per-head",
    "fp8_per_token_head": "fp8-per-head",
    "q4_1": "q-others",
    "q5_0": "q-others",
    "q5_1": "q-others",
    "iq4_nl": "q-others",
    "int2": "int8-quanto",
    "int4": "int8-quanto",
}
# What to offer instead of a format that is refused, the nearest in size first.
_INSTEAD = {
    "small": ("awq-int4-g128", "gptq-int4-g128", "gguf:q4_k_m", "fp8", "w8a8-int8", "gguf:q8_0", "none"),
    "large": ("fp8", "fp8-channel", "w8a8-int8", "w8a16-int8", "gguf:q8_0", "awq-int4-g128", "none"),
}
_LARGE = re.compile(r"fp8|mxfp8|w8|.*int8|gguf:q[68]|bnb-int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Whether a format starts, and how.

    `speed` is `native` (the format's own kernel), `emulated` (it runs by a kernel that computes in a wider type, so it
    saves memory and not arithmetic) or `slow` (by a general kernel, well behind 16 bit where there is much to compute).
    `reason` says why it is refused, or what to know of it; `hint` what to use instead. `source` is where that was read.
    """

    runs: bool
    kernel: str
    reason: str
    hint: str
    source: str
    speed: Speed


def known_kv_dtypes() -> frozenset[str]:
    """Return every name of a cache type that an engine has, in small letters."""
    return frozenset(_KV_FORMATS) | {name for engine in ENGINES for name in _table(engine)["kv"] if name != "q-others"}


def support(
    spec: ModelSpec,
    scheme: str | None,
    kv_dtype: str | None,
    gpu: GpuSpec,
    layout: ParallelLayout,
    engine: str,
    version: str | None,
) -> Support:
    """Return whether `spec` in `scheme`, cached in `kv_dtype`, starts on `gpu`, and with which kernel for its weights.

    `scheme` None is the checkpoint's own storage. Of several refusals the first is told: the device, the weights, the
    cut over ranks, the cache.
    Raises: UsageError for a version that is none.
    """
    table = _table(engine)
    own = scheme is None or scheme == spec.quantization
    name = (spec.quantization or "none") if scheme is None else scheme
    traits = _traits(spec, layout, own=own)
    plain = _of_format(table, "none", gpu, version, traits)
    if not plain.runs or _is_unknown(gpu):
        return plain
    found = _of_format(table, name, gpu, version, traits)
    if not found.runs:
        return replace(found, hint=found.hint or _instead(table, name, gpu, version))
    if own and layout.tensor > 1 and (uneven := uneven_split(spec, layout, _format(name)[0], table.get("splits", {}))):
        return _refusal(f"{name} {uneven.reason}", uneven.hint, uneven.source)
    kept = kv_support(spec, kv_dtype, gpu, engine, version)
    return found if kept.runs else kept


def kv_support(spec: ModelSpec, kv_dtype: str | None, gpu: GpuSpec, engine: str, version: str | None) -> Support:
    """Return whether a cache of `kv_dtype` starts on `gpu`; None is the engine's default.

    Raises: UsageError for a version that is none.
    """
    table = _table(engine)
    plain = _of_format(table, "none", gpu, version, frozenset())
    if not plain.runs or _is_unknown(gpu):
        return plain
    name = (kv_dtype or "auto").strip().lower()
    latent = any(isinstance(cache, LatentAttention) for layer, _ in spec.distinct_layers() for cache in layer.caches)
    key = _KV_FORMATS.get(name, name)
    entry = table["kv"].get(key) or table["kv"]["other"]
    case = Case(
        gpu=gpu, release=_release(engine, version), traits=frozenset({"latent"}) if latent else frozenset[str]()
    )
    found = _decided(entry, case, f"a {name} cache", table)
    return found if found.runs or found.hint else replace(found, hint="use --kv-dtype auto")


def format_names(engine: str, kind: Literal["weights", "kv"] = "weights") -> Mapping[str, str]:
    """The formats that an engine's table has rows or a reason for, with their titles."""
    return {name: str(entry["title"]) for name, entry in _table(engine)[kind].items()}


@cache
def _table(engine: str) -> dict[str, Any]:
    return load_table(Path("servable") / f"{engine}.yaml")


@cache
def _release(engine: str, version: str | None) -> tuple[int, ...]:
    return parse_release(version or str(load_table(Path("engines") / f"{engine}.yaml")["newest"]))


def _format(scheme: str) -> tuple[str, int | None, int | None]:
    """The format that a scheme is of, its width and its group."""
    if scheme.startswith("gguf:"):
        return "gguf", None, None
    if scheme in _FORMATS:
        return _FORMATS[scheme], None, None
    match = _PATTERN.fullmatch(scheme)
    return (match[1], int(match[2]), int(match[3] or 0)) if match else (scheme, None, None)


def _of_format(
    table: Mapping[str, Any], scheme: str, gpu: GpuSpec, version: str | None, traits: frozenset[str]
) -> Support:
    """What the rows of a scheme's format say, the layout apart."""
    if _is_unknown(gpu):
        return Support(
            runs=True, kernel="", reason="the kind of device is not known", hint="", source="", speed="native"
        )
    key, bits, group = _format(scheme)
    entry = table["weights"].get(key) or table["weights"]["other"]
    case = Case(gpu=gpu, release=_release(table["engine"], version), bits=bits, group=group, traits=traits)
    return _decided(entry, case, "16-bit weights" if scheme == "none" else scheme, table)


def _decided(entry: Mapping[str, Any], case: Case, what: str, table: Mapping[str, Any]) -> Support:
    """What the first matching row says; without one, that releases or devices are in the way."""
    source = str(entry["source"])
    row = first_row(entry["rows"], case)
    if row is not None and "refused" not in row:
        speed: Speed = row["speed"]
        return Support(runs=True, kernel=str(row["kernel"]), reason=_remark(row), hint="", source=source, speed=speed)
    if row is not None:
        return _refusal(str(row["refused"]), _use(row), source)
    title, engine = table["title"], table["engine"]
    since, before = missed(entry["rows"], case)
    if since:
        return _refusal(f"{title} runs {what} on {_chip(case.gpu)} from {since} on", f"use {engine}@{since}", source)
    if before:
        return _refusal(f"{title} runs {what} on {_chip(case.gpu)} before {before} only", _use(entry), source)
    said = str(entry.get("otherwise") or f"{title} has no kernel for {what} on {_chip(case.gpu)}")
    return _refusal(said, _use(entry), source)


def _remark(row: Row) -> str:
    if row.get("dequantized"):
        return "expanded to 16 bit while it loads: it takes the memory of 16-bit weights"
    emulated = "computed in a wider type: it saves memory, not arithmetic" if row["speed"] == "emulated" else ""
    return str(row.get("note") or emulated)


def _use(entry: Mapping[str, Any]) -> str:
    return f"use {entry['use']}" if entry.get("use") else ""


def _refusal(reason: str, hint: str, source: str) -> Support:
    return Support(runs=False, kernel="", reason=reason, hint=hint, source=source, speed="slow")


def _is_unknown(gpu: GpuSpec) -> bool:
    """Whether a device is a size and nothing more (`--gpu-memory`), of which no table can say anything."""
    return gpu.vendor in ("nvidia", "amd") and gpu.compute_capability is None


def _chip(gpu: GpuSpec) -> str:
    """A device as tables speak of it."""
    if gpu.cuda_capability is not None:
        return f"compute capability {gpu.compute_capability}"
    return gpu.compute_capability or gpu.architecture


def _instead(table: Mapping[str, Any], refused: str, gpu: GpuSpec, version: str | None) -> str:
    """The two schemes nearest in size that do run there."""
    order = _INSTEAD["large" if _LARGE.match(refused) else "small"]
    held = [name for name in order if name != refused and _of_format(table, name, gpu, version, frozenset()).runs]
    return f"use {' or '.join(f'--quant {name}' for name in held[:2])}" if held else ""


def _traits(spec: ModelSpec, layout: ParallelLayout, *, own: bool) -> frozenset[str]:
    """What rows may ask for: a checkpoint's own traits where it is its storage that is asked about, and the layout."""
    traits = set(spec.quantization_traits) if own else set()
    if layout.tensor > 1:
        traits.add("ranks")
    if any(layer.mlp and layer.mlp.num_experts for layer, _ in spec.distinct_layers()):
        traits.add("experts")
    return frozenset(traits)
