"""Turns one measured engine start into a record of the form that benchmarks/vllm/records.py reads.

The terms in `truth` are in GiB. They come from the worker in bytes where the probe could ask it, else from the log with
its two digits. What was measured beyond a start-up (`ladder`, `trace`, `request`) stays beside them, in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_points import Point

from memplan.catalog.gpus import find_gpu
from memplan.errors import UsageError
from memplan.units import GIB

Facts = Mapping[str, Any]

# term of a record -> the worker's name for it in bytes
_IN_BYTES = {
    "weights_gib": "weights",
    "non_torch_gib": "non_torch",
    "consumed_gib": "consumed",
    "cuda_graph_estimate_gib": "cuda_graph_estimate",
    "kv_cache_gib": "kv_cache",
}
_TRUTH = (
    "weights_gib", "peak_load_gib", "activation_peak_gib", "non_torch_gib", "consumed_gib",
    "peak_with_graph_estimate_gib", "cuda_graph_gib", "cuda_graph_estimate_gib", "graph_profile_mib", "kv_cache_gib",
    "kv_blocks", "kv_cache_tokens", "max_concurrency",
)  # fmt: skip


def build_record(point: Point, *, machine: Facts, answers: Facts, terms: Facts) -> dict[str, Any]:
    """Return the record of a point. `machine`: versions and device; `answers`: the probe's; `terms`: the log's."""
    facts = answers.get("facts") or {}
    settings, sizes = facts.get("settings") or {}, facts.get("bytes") or {}
    truth = _truth(terms, sizes, settings)
    return {
        "id": f"{point.id}@{machine.get('vllm')}",
        "source": "measured by benchmarks/gpu/run_vllm.py, dummy weights",
        "model": f"{point.model.catalogue}, {_size(point)}",
        "config": point.model.name,
        "engine": "vllm",
        "engine_generation": "V1",
        "version": str(machine.get("vllm")).partition("+")[0],
        "version_as_reported": machine.get("vllm"),
        "quant": None if point.model.quantization else settings.get("quantization"),
        "kv_dtype": None if settings.get("cache_dtype") == "auto" else settings.get("cache_dtype"),
        **_device(machine, sizes, terms),
        **_layout(point.engine),
        **_limits(point.engine, settings, terms),
        "cudagraph_mode": settings.get("cudagraph_mode"),
        "capture_sizes": terms.get("capture_sizes"),
        "env": dict(point.env) or None,
        "offline": True,
        "install": "pip",
        "flashinfer_sampler": terms.get(
            "flashinfer_sampler", False if machine.get("flashinfer-python") is None else None
        ),
        "model_runner": terms.get("model_runner", "V1"),
        "attention_backend": terms.get("attention_backend"),
        "inferred": [],
        "notes": point.separates,
        "quality": "full" if truth["kv_cache_gib"] and truth["weights_gib"] else "partial",
        "scored": "kv" if machine.get("gpu") and truth["kv_cache_gib"] else "weights",
        "truth": truth,
        "measured": {"machine": dict(machine), "settings": settings, "bytes": sizes, "memory": facts.get("memory")},
        **{name: answers[name] for name in ("ladder", "trace", "request") if name in answers},
    }


def _truth(terms: Facts, sizes: Facts, settings: Facts) -> dict[str, Any]:
    """The terms; bytes of the worker come before the log's two digits."""
    truth: dict[str, Any] = {name: terms.get(name) for name in _TRUTH}
    for name, key in _IN_BYTES.items():
        if sizes.get(key) is not None:
            truth[name] = round(sizes[key] / GIB, 5)
    peak = sizes.get("activation_peak")
    if peak is not None:
        # Where a worker keeps what was consumed as one term, its peak holds the graphs' estimate as well.
        name = "activation_peak_gib" if sizes.get("consumed") is None else "peak_with_graph_estimate_gib"
        truth[name] = round(peak / GIB, 5)
    if truth["kv_blocks"] is None:
        truth["kv_blocks"] = settings.get("num_gpu_blocks")
    return truth


def _device(machine: Facts, sizes: Facts, terms: Facts) -> dict[str, Any]:
    name = machine.get("gpu")
    return {
        "gpu": name,
        "gpu_key": _gpu_key(name),
        "gpu_memory_gib": _gib(sizes.get("gpu_memory")) or terms.get("gpu_memory_gib"),
        "free_at_start_gib": _gib(sizes.get("free_at_start")) or terms.get("free_at_start_gib"),
    }


def _gpu_key(name: str | None) -> str | None:
    """The catalogue's name of a device; null for a device it does not know and for a run without one."""
    if name is None:
        return None
    try:
        return find_gpu(name).name
    except UsageError:
        return None


def _layout(engine: Facts) -> dict[str, Any]:
    return {
        "tp": engine.get("tensor_parallel_size", 1),
        "pp": engine.get("pipeline_parallel_size", 1),
        "dp": engine.get("data_parallel_size", 1),
        "ep": engine.get("enable_expert_parallel", False),
        "speculative": engine.get("speculative_config"),
        "language_model_only": engine.get("language_model_only", False),
        "limit_mm": engine.get("limit_mm_per_prompt"),
        "disable_custom_all_reduce": engine.get("disable_custom_all_reduce"),
    }


def _limits(engine: Facts, settings: Facts, terms: Facts) -> dict[str, Any]:
    """The limits that took effect; where the worker could not say, those that were asked for."""

    def effective(name: str) -> Any:
        return settings.get(name, engine.get(name))

    return {
        "dtype": effective("dtype"),
        "max_model_len": effective("max_model_len"),
        "max_num_seqs": effective("max_num_seqs"),
        "max_num_batched_tokens": effective("max_num_batched_tokens") or terms.get("max_num_batched_tokens"),
        "chunked_prefill": effective("enable_chunked_prefill"),
        "prefix_caching": effective("enable_prefix_caching"),
        "eager": effective("enforce_eager"),
        "block_size": engine.get("block_size"),
        "gpu_memory_utilization": effective("gpu_memory_utilization"),
    }


def _size(point: Point) -> str:
    return "all layers" if point.model.layers is None else f"{point.model.layers} layers"


def _gib(size_bytes: int | None) -> float | None:
    return None if size_bytes is None else round(size_bytes / GIB, 5)
