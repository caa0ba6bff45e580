"""What a record of a llama.cpp start means: the model in its mix, the settings, and the printed buffers by kind.

The log of a start prints buffers, not the command line. Three settings are read back from where the buffers lie: the
layers per GPU from the cache's parts, experts in host memory from the GPUs' weights, and a cache kept off the GPUs from
its buffer's name. Everything else is printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from builds import build_at
from shapes import model_of

from memplan.catalog.rules import Rules
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.llama_cpp.buffers import file_bytes
from memplan.engines.llama_cpp.compute import planned_schedule
from memplan.engines.llama_cpp.engine import rules_of
from memplan.engines.llama_cpp.kv_cache import cache_bytes, cells_of
from memplan.engines.llama_cpp.overrides import Override
from memplan.engines.llama_cpp.placement import place
from memplan.engines.llama_cpp.plan import Plan, plan_devices
from memplan.engines.llama_cpp.settings import LlamaSettings, backend_of, resolve
from memplan.errors import UsageError
from memplan.introspect.gguf_mix import apply_mix, parse_mix
from memplan.units import GIB, MIB

Record = Mapping[str, object]

_GPU_BUFFER = re.compile(r"(CUDA|ROCm|SYCL|CANN|Vulkan|MUSA|Metal|MTL|OpenCL|HIP)(\d*)(?:_Split|_Mapped|_Private)?$")
_REPACKED = re.compile(r"AMX|CPU_AARCH64|CPU_REPACK|CPU_KLEIDIAI|CPU_HBM")
_VENDORS = {"ROCm": "amd", "HIP": "amd", "SYCL": "intel", "Metal": "apple", "MTL": "apple", "CANN": "huawei"}
# Mixes of the ik fork that llama.cpp does not have, by the nearest one that it has: only a start for the file's size.
_FORKS = {"iq2_k": "iq2_m", "iq3_k": "iq3_m", "iq4_k": "iq4_xs", "iq5_k": "q5_k_m", "iq6_k": "q6_k", "iq2_bn": "tq2_0"}
# Records of the fork and undated ones are from the spring of 2025; the fork left the main line in the summer of 2024.
_UNDATED, _FORK = 5300, 3600
# From this build on, the cache of layers on the host is in plain memory whatever the option says.
_PLAIN_HOST_CACHE = 4033


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """What a log printed, in MiB: of GPUs by number, of the host. None where it printed nothing of that kind."""

    weights: tuple[float, ...] | None
    host_weights: float | None
    cache: float | None
    gpu_cache: float | None
    compute: tuple[float, ...] | None
    host_compute: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A record as a question to the engine, and how its file's size compares with what the mix gives."""

    spec: ModelSpec
    settings: LlamaSettings
    rules: Rules
    printed: Printed
    mix: str
    file_error: float | None
    size_scale: float
    is_fork: bool

    def answer(self) -> Plan:
        """The buffers that the engine's rules give."""
        return plan_devices(self.spec, self.settings, self.rules)


def question_of(record: Record, configs: Path) -> Question:
    """Read a record.

    Raises: MemplanError when its model is not known, or a setting is refused.
    """
    is_fork = "ik_llama" in str(record.get("engine"))
    build = _build(record, is_fork)
    mix, is_known = mix_of(str(record.get("file_type")), str(record.get("gguf_file")))
    plain = model_of(record, configs)
    form = parse_mix(mix, fused_as_values=build >= 8259, tied_as_head=build >= 2366)
    spec = apply_mix(plain, form)
    size = size_bytes(str(record.get("model_size") or ""))
    error = file_bytes(spec) / size - 1 if size else None
    by_header = error is not None and (not is_known or abs(error) > 0.006)
    gpus = _gpus(record)
    printed = _printed(record, gpus)
    options = _options(record, spec, gpus, is_fork, build)
    asked = ServingSettings(
        layout=ParallelLayout(tensor=max(1, len(gpus))),
        workload=Workload(context_tokens=_whole(record, "n_ctx") or spec.max_context_tokens),
        engine_options=options,
    )
    rules = rules_of(asked, f"b{build}")
    settings, _ = resolve(spec, backend_of(_gpu(gpus)), asked, rules)
    scale = 1 / (1 + error) if by_header and error is not None else 1.0
    settings = _divided(record, spec, settings, rules, gpus)
    settings = _with_host_experts(spec, settings, rules, printed, scale)
    settings = _with_offload(record, spec, settings, rules) if is_fork else settings
    return Question(
        spec=spec,
        settings=settings,
        rules=rules,
        printed=printed,
        mix=mix,
        file_error=error,
        size_scale=scale,
        is_fork=is_fork,
    )


def mix_of(file_type: str, file_name: str) -> tuple[str, bool]:
    """The mix that a log names (`Q4_K - Medium`, `IQ3_S mix - 3.66 bpw`), and whether its types are llama.cpp's own.

    The name of the file tells the publisher's variants with a richer head, which the log calls by the base mix.
    """
    found = re.search(r"(q[2456]_k_l|q3_k_xl)\b", file_name.lower())
    if found and (found[1] != "q2_k_l" or "ud-" not in file_name.lower()):
        return found[1], "ud-" not in file_name.lower()
    text = file_type.lower().replace("(guessed)", "").replace("all ", "").strip()
    if text.startswith("iq3_s mix"):
        return "iq3_m", True
    if text.startswith("mxfp4"):
        return "mxfp4_moe", True
    base, _, rest = text.partition(" - ")
    base = re.sub(r"_r(?:4|8|16)$", "", base)
    size = {"small": "_s", "medium": "_m", "large": "_l"}.get(rest.split(" ")[0], "")
    name = base + size if size and (base, size) != ("q2_k", "_m") else base
    name = {"q2_k_s": "q2_k_s", "q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}.get(name, name)
    if name in _FORKS:
        return _FORKS[name], False
    try:
        parse_mix(name)
    except UsageError:
        return "q4_k_m", False
    return name, True


def size_bytes(text: str) -> float | None:
    """`39.59 GiB (4.82 BPW)` in bytes."""
    words = text.replace(",", ".").split()
    return float(words[0]) * {"MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}[words[1]] if len(words) > 1 else None


def _build(record: Record, is_fork: bool) -> int:
    if is_fork:
        return _FORK
    if record.get("build"):
        return int(str(record["build"]))
    return build_at(str(record["created"])) if record.get("created") else _UNDATED


def _whole(record: Record, key: str) -> int | None:
    value = record.get(key)
    return int(value) if isinstance(value, (int, float)) else None


def _buffers(record: Record, key: str) -> list[tuple[str, float]]:
    listed = record.get(key)
    return [(str(name), float(size)) for name, size in listed] if isinstance(listed, list) else []


def _gpus(record: Record) -> list[str]:
    """The GPUs that buffers name, in their order."""
    names = set()
    for key in ("weight_buffers_mib", "kv_buffers_mib", "compute_buffers_mib"):
        for name, _ in _buffers(record, key):
            if found := _GPU_BUFFER.match(name):
                names.add((found[1], int(found[2] or 0)))
    return [f"{kind}{number}" for kind, number in sorted(names)]


def _gpu(gpus: list[str]) -> GpuSpec:
    """A GPU of the vendor that buffers name, without any limit."""
    kind = re.sub(r"\d", "", gpus[0]) if gpus else "CUDA"
    return GpuSpec(
        name="any",
        vendor=_VENDORS.get(kind, "nvidia"),
        architecture="any",
        memory_bytes=1 << 50,
        driver_memory_bytes=None,
        visible_low_bytes=1 << 50,
        visible_high_bytes=1 << 50,
        provenance="given",
        source="the record",
    )


def _by_gpu(buffers: Iterable[tuple[str, float]], gpus: list[str]) -> tuple[tuple[float, ...], float]:
    """Sums of what lies on each GPU, and of what lies in host memory; repacked copies are left out."""
    sums, host = [0.0] * len(gpus), 0.0
    for name, size in buffers:
        found = _GPU_BUFFER.match(name)
        if found:
            sums[gpus.index(f"{found[1]}{int(found[2] or 0)}")] += size
        elif not _REPACKED.match(name):
            host += size
    return tuple(sums), host


def _printed(record: Record, gpus: list[str]) -> Printed:
    weights = _buffers(record, "weight_buffers_mib")
    compute = dict(reversed(_buffers(record, "compute_buffers_mib")))  # the first of a name: drafts and towers follow
    gpu_weights, host_weights = _by_gpu(weights, gpus)
    gpu_compute, host_compute = _by_gpu(compute.items(), gpus)
    total = record.get("kv_total_mib")
    cache = _of_target(_buffers(record, "kv_buffers_mib"), total)
    return Printed(
        weights=gpu_weights if weights else None,
        host_weights=host_weights if weights else None,
        cache=float(total) if isinstance(total, (int, float)) else None,
        gpu_cache=sum(_by_gpu(cache, gpus)[0]) if cache else None,
        compute=gpu_compute if compute else None,
        host_compute=host_compute if compute else None,
    )


def _of_target(buffers: list[tuple[str, float]], total: object) -> list[tuple[str, float]]:
    """The cache's parts of the first model: those of a draft follow once the printed sum is reached."""
    if isinstance(total, (int, float)):
        sums = list(accumulate(size for _, size in buffers))
        for count, reached in enumerate(sums, start=1):
            if abs(reached - total) < 0.01 * count:
                return buffers[:count]
    return buffers


def _options(record: Record, spec: ModelSpec, gpus: list[str], is_fork: bool, build: int) -> dict[str, object]:
    options: dict[str, object] = {
        "ctx_size": _whole(record, "n_ctx"),
        "parallel": _whole(record, "n_seq_max") or 1,
        "batch_size": _whole(record, "n_batch"),
        "ubatch_size": _whole(record, "n_ubatch"),
        "n_gpu_layers": _offloaded(record, spec, gpus),
        "cache_type_k": record.get("cache_type_k"),
        "cache_type_v": record.get("cache_type_v"),
        "flash_attention": str(record["flash_attn"]) not in ("0", "false", "disabled")
        if record.get("flash_attn")
        else None,
        "cache_ram_mib": 0,
    }
    if any("_Split" in name for name, _ in _buffers(record, "weight_buffers_mib")):
        options["split_mode"] = "row"
    if not gpus:
        options["device"] = "none"
    else:
        options["kv_offload"] = _offloads_cache(record, options["n_gpu_layers"] == 0, build)
    streams = re.search(r"(\d+)/(\d+) seqs", str(record.get("kv_line")))
    if streams and int(streams[2]) > 1:
        options["kv_unified"] = streams[2] != streams[1] or streams[1] == "1"
    if is_fork:
        options |= {"fork": "ik", "mla_attn": _whole(record, "mla_attn") or 0}
    return {name: value for name, value in options.items() if value is not None}


def _offloads_cache(record: Record, all_on_host: bool, build: int) -> bool:
    """Whether layers keep their cache with them. Layers on the host tell only in older builds: pinned memory if so."""
    names = [name for name, _ in _buffers(record, "kv_buffers_mib")]
    if any(_GPU_BUFFER.match(name) for name in names):
        return True
    return all_on_host and (build >= _PLAIN_HOST_CACHE or any("_Host" in name for name in names))


def _offloaded(record: Record, spec: ModelSpec, gpus: list[str]) -> int:
    """Layers on GPUs as printed; all of them where GPUs hold weights and the log does not print how many."""
    found = re.match(r"(\d+)/(\d+)", str(record.get("offloaded_layers") or ""))
    if found:
        return int(found[1])
    weights = _buffers(record, "weight_buffers_mib")
    return spec.num_layers + 1 if gpus and any(_GPU_BUFFER.match(name) for name, _ in weights) else 0


def _divided(record: Record, spec: ModelSpec, settings: LlamaSettings, rules: Rules, gpus: list[str]) -> LlamaSettings:
    """Settings with each GPU's share of the layers, read back from its part of the cache."""
    parts, _ = _by_gpu(_of_target(_buffers(record, "kv_buffers_mib"), record.get("kv_total_mib")), gpus)
    if len(gpus) < 2 or not all(parts):
        return settings
    alone = replace(settings, num_gpus=1, tensor_split=(), split_mode="layer")
    devices = place(spec, alone, rules)
    layers = [index for index, device in enumerate(devices.layers) if device == 0]
    sizes = [_layer_mib(spec, index, settings, rules) for index in layers]
    ends = list(accumulate(sizes))
    counts, begin, wanted = [], 0, 0.0
    for part in parts[:-1]:
        wanted += part
        end = min(range(len(ends)), key=lambda position: abs(ends[position] - wanted)) + 1
        counts.append(max(0, end - begin))
        begin = end
    counts.append(len(layers) - begin + (1 if devices.output == 0 else 0))
    return replace(settings, tensor_split=tuple(float(count) for count in counts))


def _layer_mib(spec: ModelSpec, index: int, settings: LlamaSettings, rules: Rules) -> float:
    """The cache of one layer."""
    only = replace(spec, layers=(spec.layers[index],))
    alone = replace(settings, num_gpus=0)
    cells = cells_of(spec, settings, rules)
    return cache_bytes(only, alone, rules, place(only, alone, rules), cells).total_bytes / MIB


def _with_offload(record: Record, spec: ModelSpec, settings: LlamaSettings, rules: Rules) -> LlamaSettings:
    """Settings of the fork with experts or whole blocks on the host, multiplied there or on a GPU: whichever of these
    the printed number of splits is nearest to.

    Its fused experts, types without a CUDA kernel and its offload policy all keep large batches on the host.
    """
    splits = _whole(record, "graph_splits")
    routed = any("exps." in tensor.name for layer in spec.layers for tensor in layer.tensors)
    if splits is None or not routed or not settings.num_gpus:
        return settings
    cells = cells_of(spec, settings, rules)

    def off(choice: LlamaSettings) -> int:
        devices = place(spec, choice, rules)
        return abs(planned_schedule(spec, choice, rules, devices, cells, every_layer=True).num_splits - splits)

    count = settings.n_cpu_moe or sum(override.pattern.count("|") + 1 for override in settings.override_tensor)
    starts = [settings]
    if count:
        experts = replace(settings, n_cpu_moe=count, override_tensor=())
        starts = [experts, _with_host_blocks(experts, count)]
    return min((replace(start, expert_offload=wants) for start in starts for wants in (False, True)), key=off)


def _with_host_blocks(settings: LlamaSettings, count: int) -> LlamaSettings:
    """Settings with the whole MLP blocks of the first layers in host memory, norm and router among them."""
    layers = "|".join(str(index) for index in range(count))
    whole = Override(rf"^blk\.({layers})\.ffn_", "CPU", settings.num_gpus)
    return replace(settings, override_tensor=(whole,), n_cpu_moe=0)


def _with_host_experts(
    spec: ModelSpec, settings: LlamaSettings, rules: Rules, printed: Printed, scale: float
) -> LlamaSettings:
    """Settings with as many layers' experts in host memory as the printed weights of the GPUs show: the experts alone,
    or with them the router and the norm, as the pattern `ffn` takes them.
    """
    from memplan.engines.llama_cpp.buffers import weight_buffers

    routed = any("exps." in tensor.name for layer in spec.layers for tensor in layer.tensors)
    if not routed or printed.weights is None or not settings.num_gpus or not settings.n_gpu_layers:
        return settings

    def off(choice: LlamaSettings) -> float:
        held = weight_buffers(spec, place(spec, choice, rules), settings.backend, rules)
        return abs(sum(held.by_device[:-1]) * scale / MIB - sum(printed.weights or ()))

    best = min((replace(settings, n_cpu_moe=count) for count in range(spec.num_layers + 1)), key=off)
    if off(best) >= 0.5 * off(settings):
        return settings
    return min(best, _with_host_blocks(settings, best.n_cpu_moe), key=off)
