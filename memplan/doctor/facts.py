"""What a text says of a run, under one set of names whatever engine printed it: settings, and terms that were
measured.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from memplan.doctor.scan import Scanned
from memplan.doctor.sightings import Sightings
from memplan.records import dataclass, field

_OWNERS = {"vllm": "vllm", "sglang": "sglang", "trtllm": "tensorrt-llm", "llama": "llama.cpp", "ollama": "llama.cpp"}
_MOST_COUNTED = 50
# Wordings that other programs have, too.
_SHARED_WORDS = (
    "trtllm_no_kv",
    "trtllm_no_blocks",
    "trtllm_workspace",
    "trtllm_length_one",
    "trtllm_fraction",
    "trtllm_malloc",
)
# vLLM's names in `non-default args`, and memplan's.
_ARGUMENTS = {
    "model": "model",
    "tensor_parallel_size": "tp",
    "pipeline_parallel_size": "pp",
    "data_parallel_size": "dp",
    "enable_expert_parallel": "ep",
    "max_model_len": "context",
    "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "kv_cache_memory_bytes": "kv_cache_memory",
    "kv_cache_dtype": "kv_dtype",
    "dtype": "dtype",
    "quantization": "quantization",
    "enforce_eager": "eager",
    "block_size": "block_size",
    "swap_space": "swap_space",
    "cpu_offload_gb": "cpu_offload_gb",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Settings and measured terms; None where the text does not say. Sizes are bytes of the fullest rank.

    `settings` are under memplan's option names, as they were told to the engine or printed by it.
    """

    scanned: Scanned
    engine: str | None = None
    version: str | None = None
    generation: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    total_bytes: int | None = None
    free_bytes: int | None = None
    initial_bytes: int | None = None
    requested_bytes: int | None = None
    weights_bytes: int | None = None
    activation_bytes: int | None = None
    non_torch_bytes: int | None = None
    graphs_bytes: int | None = None
    available_bytes: int | None = None
    needed_bytes: int | None = None
    kv_tokens: int | None = None
    kv_blocks: int | None = None
    longest_tokens: int | None = None
    wanted_bytes: int | None = None
    allocated_bytes: int | None = None
    unallocated_bytes: int | None = None
    process_bytes: int | None = None

    @property
    def seen(self) -> Sightings:
        """What was seen, pattern by pattern."""
        return self.scanned.seen

    def integer(self, name: str) -> int | None:
        """A setting that is a whole number; None where it is not known."""
        value = self.settings.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def share(self, name: str) -> float | None:
        """A setting that is a part of one."""
        value = self.settings.get(name)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def text(self, name: str) -> str | None:
        """A setting that is text."""
        value = self.settings.get(name)
        return value if isinstance(value, str) else None

    @property
    def others_bytes(self) -> int:
        """What other processes held of the GPU, as far as the text tells it."""
        named = sum(process.used_bytes for process in self.scanned.processes)
        known = self.process_bytes or (
            (self.allocated_bytes or 0) + (self.unallocated_bytes or 0) if self.allocated_bytes else None
        )
        if self.process_bytes is None and len(self.scanned.processes) == 1 and known:
            return max(0, named - known) if named < 0.5 * known else 0  # "Process N" was the one that failed
        if self.process_bytes is None and known and named >= known:
            return max(0, named - max(each.used_bytes for each in self.scanned.processes))
        return named


def gather(scanned: Scanned, *, engine: str | None = None, version: str | None = None) -> Facts:
    """Return the facts of a scanned text; `engine` and `version` win over what it says."""
    seen = scanned.seen
    found = engine or engine_of(seen)
    last = seen.last("vllm_version") if found == "vllm" else seen.last("sglang_version") if found == "sglang" else None
    if found == "tensorrt-llm":
        last = seen.last("trtllm_version")
    if found == "llama.cpp" and (build := seen.last("llama_build")) is not None:
        version = version or f"b{build.values.get('build')}"
    told = str(last.values["version"]) if last and "version" in last.values else None
    generation = seen.last("vllm")
    return Facts(
        scanned=scanned,
        engine=found,
        version=version or told,
        generation=_generation(seen, generation.values.get("generation") if generation else None),
        settings=_settings(seen, found),
        **_memory(seen, found),
        **_allocator(seen),
    )


def engine_of(seen: Sightings) -> str | None:
    """The engine that most of the lines are of; None when none of them is an engine's."""
    scores: dict[str, int] = {}
    for name in seen.names():
        owner = _OWNERS.get(name.partition("_")[0])
        if owner is not None and name not in _SHARED_WORDS:
            weight = 3 if "_" in name else 1
            scores[owner] = scores.get(owner, 0) + weight * min(seen.count(name), _MOST_COUNTED)
    best = max(scores, key=lambda each: scores[each], default=None)
    return best if best and scores[best] else None


def _generation(seen: Sightings, told: object) -> str | None:
    version = seen.last("vllm_version")
    said = (version.values.get("generation") if version else None) or told
    if isinstance(said, str):
        return said
    if "vllm_v1" in seen:
        return "V1"
    return "V0" if "vllm_v0" in seen else None


def _settings(seen: Sightings, engine: str | None) -> dict[str, object]:
    """Later sources win: the command in the text, then what the engine printed of its own configuration."""
    found: dict[str, object] = {}
    for name, key, option in (
        ("command_model", "model", "model"),
        ("command_len", "context", "context"),
        ("command_tp", "tp", "tp"),
        ("command_pp", "pp", "pp"),
        ("command_seqs", "seqs", "max_num_seqs"),
        ("command_tokens", "tokens", "max_num_batched_tokens"),
        ("command_util", "utilization", "gpu_memory_utilization"),
        ("command_util", "utilization2", "gpu_memory_utilization"),
        ("command_quant", "quantization", "quantization"),
        ("command_quant", "quantization2", "quantization"),
        ("command_kv", "kv_dtype", "kv_dtype"),
        *_PRINTED.get(engine or "", ()),
    ):
        place = seen.last(name)
        if place is not None and place.values.get(key) not in (None, "None", "auto"):
            found[option] = place.values[key]
    if "command_eager" in seen:
        found["eager"] = True
    if (eager := seen.last("vllm_eager")) is not None:
        found["eager"] = eager.values.get("eager") == "True"
    arguments = seen.last("vllm_args")
    if arguments is not None:
        found.update(_arguments(str(arguments.values.get("arguments", ""))))
    return found


_PRINTED: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "vllm": (
        ("vllm_config", "model", "model"),
        ("vllm_config", "dtype", "dtype"),
        ("vllm_config", "context", "context"),
        ("vllm_concurrency", "context", "context"),
        ("vllm_too_long", "context", "context"),
        ("vllm_needs_kv", "context", "context"),
        ("vllm_tp", "tp", "tp"),
        ("vllm_pp", "pp", "pp"),
        ("vllm_dp", "dp", "dp"),
        ("vllm_seqs", "seqs", "max_num_seqs"),
        ("vllm_batched", "tokens", "max_num_batched_tokens"),
        ("vllm_quant", "quantization", "quantization"),
        ("vllm_kv_dtype", "kv_dtype", "kv_dtype"),
        ("vllm_load_format", "load_format", "load_format"),
        ("vllm_profile_old", "utilization", "gpu_memory_utilization"),
        ("vllm_use", "utilization", "gpu_memory_utilization"),
        ("vllm_memory_start", "utilization", "gpu_memory_utilization"),
        ("vllm_free_low", "utilization", "gpu_memory_utilization"),
    ),
    "sglang": (
        ("sglang_args", "model", "model"),
        ("sglang_tp", "tp", "tp"),
        ("sglang_dp", "dp", "dp"),
        ("sglang_pp", "pp", "pp"),
        ("sglang_fraction", "fraction", "mem_fraction_static"),
        ("sglang_chunk", "tokens", "chunked_prefill_size"),
        ("sglang_graph_bs", "size", "cuda_graph_max_bs"),
        ("sglang_requests", "requests", "max_running_requests"),
        ("sglang_context", "context", "context"),
        ("sglang_tokens", "context", "context"),
        ("sglang_kv_dtype", "kv_dtype", "kv_dtype"),
    ),
    "tensorrt-llm": (
        ("trtllm_fraction", "fraction", "free_gpu_memory_fraction"),
        ("trtllm_peak", "fraction", "free_gpu_memory_fraction"),
    ),
    "llama.cpp": (
        ("llama_model", "model", "model"),
        ("llama_context", "context", "context"),
        ("llama_batch", "batch", "batch_size"),
        ("llama_ubatch", "ubatch", "ubatch_size"),
        ("llama_offloaded", "layers", "n_gpu_layers"),
    ),
}


def _arguments(text: str) -> dict[str, object]:
    """vLLM's dictionary of what was not left at its default; only plain values are read of it."""
    found: dict[str, object] = {}
    for name, option in _ARGUMENTS.items():
        match = re.search(rf"['\"]{name}['\"]: ('[^']{{0,200}}'|-?[\d.]+|True|False)", text)
        if match is not None:
            try:
                found[option] = ast.literal_eval(match[1])
            except (ValueError, SyntaxError):
                continue
    return found


def _memory(seen: Sightings, engine: str | None) -> dict[str, int | None]:
    """Terms of memory as the engine printed them: of several ranks the one with the least room."""
    if engine == "sglang":
        return _sglang(seen)
    if engine == "tensorrt-llm":
        return _tensorrt_llm(seen)
    if engine == "llama.cpp":
        return _llama_cpp(seen)
    return _with_differences(seen, _vllm(seen))


def _with_differences(seen: Sightings, found: dict[str, int | None]) -> dict[str, int | None]:
    """What follows from two printed figures: 0.6 printed the peak with the weights in it, and no product."""
    peak, weights = seen.high("vllm_profile_old", "peak"), found["weights_bytes"]
    if found["activation_bytes"] is None and peak is not None and weights is not None and peak > weights:
        found["activation_bytes"] = int(peak - weights)
    share = seen.high("vllm_profile_old", "utilization")
    if found["requested_bytes"] is None and found["total_bytes"] and share:
        found["requested_bytes"] = int(found["total_bytes"] * share)
    return found


def _vllm(seen: Sightings) -> dict[str, int | None]:
    return {
        "total_bytes": _high(seen, ("vllm_use", "total"), ("vllm_profile_old", "total"), ("vllm_free_low", "total")),
        "free_bytes": _low(seen, ("vllm_free_low", "free"), ("vllm_memory_start", "free")),
        "initial_bytes": _high(seen, ("vllm_profile_old", "initial")),
        "requested_bytes": _high(
            seen, ("vllm_use", "requested"), ("vllm_free_low", "requested"), ("vllm_memory_start", "requested")
        ),
        "weights_bytes": _high(
            seen, ("vllm_terms_weights", "weights"), ("vllm_actual", "weights"), ("vllm_weights", "weights")
        ),
        "activation_bytes": _high(
            seen, ("vllm_terms_activation", "activation"), ("vllm_actual", "activation"), ("vllm_non_kv", "activation")
        ),
        "non_torch_bytes": _high(
            seen,
            ("vllm_terms_non_torch", "non_torch"),
            ("vllm_actual", "non_torch"),
            ("vllm_profile_old", "non_torch"),
        ),
        "graphs_bytes": _high(
            seen, ("vllm_graphs", "graphs"), ("vllm_actual", "graphs"), ("vllm_graphs_estimate", "graphs")
        ),
        "available_bytes": _low(
            seen,
            ("vllm_needs_kv", "available"),
            ("vllm_kv_available", "available"),
            ("vllm_profile_old", "available"),
        ),
        "needed_bytes": _high(seen, ("vllm_needs_kv", "needed"), ("vllm_needs_kv_cut", "needed")),
        "kv_tokens": _low(seen, ("vllm_too_long", "tokens"), ("vllm_kv_tokens", "tokens")),
        "kv_blocks": _low(seen, ("vllm_blocks", "blocks")),
        "longest_tokens": _low(seen, ("vllm_longest", "longest")),
    }


def _sglang(seen: Sightings) -> dict[str, int | None]:
    keys, values = seen.high("sglang_kv", "keys"), seen.high("sglang_kv", "values")
    kv = seen.high("sglang_kv", "kv") or ((keys or 0) + (values or 0) or None)
    weights = seen.high("sglang_loaded", "weights")
    begin, loaded = seen.low("sglang_begin", "free"), seen.low("sglang_loaded", "free")
    if weights is None and begin is not None and loaded is not None:
        weights = begin - loaded
    return {
        "initial_bytes": _int(begin),
        "free_bytes": _low(seen, ("sglang_tokens", "free"), ("sglang_pool_end", "free"), ("sglang_loaded", "free")),
        "weights_bytes": _int(weights),
        "available_bytes": _int(kv),
        "graphs_bytes": _high(seen, ("sglang_captured", "graphs")),
        "kv_tokens": _low(seen, ("sglang_tokens", "tokens"), ("sglang_kv", "tokens")),
    }


def _tensorrt_llm(seen: Sightings) -> dict[str, int | None]:
    last = seen.last("trtllm_kv")
    return {
        "total_bytes": _high(seen, ("trtllm_available", "total")),
        "free_bytes": _low(seen, ("trtllm_available", "available")),
        "weights_bytes": _high(seen, ("trtllm_weights", "weights"), ("trtllm_engine", "weights")),
        "activation_bytes": _high(seen, ("trtllm_context", "context")),
        "available_bytes": (_int(last.number("kv")) if last else None)
        or _low(seen, ("trtllm_kv_bytes", "kv"), ("trtllm_peak", "available"), ("trtllm_available", "available")),
        "kv_tokens": _int(last.number("tokens")) if last else None,
        "kv_blocks": _low(seen, ("trtllm_blocks", "blocks")),
        "longest_tokens": _low(seen, ("trtllm_reduced", "longest")),
    }


def _llama_cpp(seen: Sightings) -> dict[str, int | None]:
    wanted = _high(seen, ("llama_alloc", "wanted"), ("llama_gallocr", "wanted"), ("llama_vulkan", "wanted"))
    return {
        "free_bytes": _low(seen, ("llama_device", "free"), ("llama_fit", "free"), ("ollama_system", "free")),
        "total_bytes": _high(seen, ("llama_device_total", "total")),
        "weights_bytes": _high(seen, ("llama_weights", "weights")),
        "available_bytes": _high(seen, ("llama_kv_self", "kv"), ("llama_kv_cells", "kv"), ("llama_kv", "kv")),
        "activation_bytes": _high(seen, ("llama_compute", "compute")),
        "needed_bytes": _high(seen, ("llama_fit", "needed"), ("ollama_system", "needed"), ("ollama_offload", "needed"))
        or wanted,
    }


def _allocator(seen: Sightings) -> dict[str, int | None]:
    """PyTorch's figures of the last time that it ran out; those of one message stand on one line or near it."""
    oom = seen.last("oom", "oom_mps", "oom_exceeds", "oom_wanted")
    if oom is None:
        return {}
    wanted = oom.number("wanted") or _number(seen, "oom_wanted", "wanted") or _number(seen, "oom_requested", "wanted")
    allocated = oom.number("allocated")
    reserved = oom.number("reserved")
    if allocated is None:
        allocated = _number(seen, "oom_allocated", "allocated") or _number(seen, "oom_now", "allocated")
    unallocated = _number(seen, "oom_unallocated", "unallocated")
    if unallocated is None and reserved is not None and allocated is not None:
        unallocated = max(0.0, reserved - allocated)
    return {
        "wanted_bytes": _int(wanted),
        "allocated_bytes": _int(allocated),
        "unallocated_bytes": _int(unallocated),
        "process_bytes": _int(_number(seen, "oom_process", "used")),
    }


def oom_total(facts: Facts) -> int | None:
    """The GPU's size as PyTorch's message has it, else as the engine printed it."""
    oom = facts.seen.last("oom", "oom_mps", "oom_limit_set")
    number = oom.number("total") if oom else None
    return _int(number) or facts.total_bytes


def oom_free(facts: Facts) -> int | None:
    """What was free on the device when it ran out."""
    oom = facts.seen.last("oom")
    number = oom.number("free") if oom else None
    return _int(number if number is not None else _number(facts.seen, "oom_free_driver", "free"))


def _number(seen: Sightings, name: str, key: str) -> float | None:
    place = seen.last(name)
    return place.number(key) if place else None


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _low(seen: Sightings, *places: tuple[str, str]) -> int | None:
    return next((_int(low) for name, key in places if (low := seen.low(name, key)) is not None), None)


def _high(seen: Sightings, *places: tuple[str, str]) -> int | None:
    return next((_int(high) for name, key in places if (high := seen.high(name, key)) is not None), None)
