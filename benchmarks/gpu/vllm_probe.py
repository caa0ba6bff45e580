"""Runs inside vLLM's own environment: starts one engine, reads its memory in bytes, measures further sizes.

    VLLM_PYTHON vllm_probe.py --environment        the versions and the device, as one JSON line
    VLLM_PYTHON vllm_probe.py ORDER.json           one engine start; the answers go to the file the order names

`MemoryProbe` is a worker extension of vLLM (`worker_extension_cls`): its methods run in the process that owns the GPU
and are called by name. Nothing of memplan is imported here: this environment may not have it. Answers are written as
soon as each is known, so that a crash later on loses nothing.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from allocation_trace import alive_at_peak, by_place

Answers = dict[str, Any]


class MemoryProbe:
    """Methods that vLLM adds to its worker. Every name starts with `probe_`: vLLM refuses names that it has itself."""

    def probe_facts(self) -> Answers:
        """Return the settings that took effect and the terms of the budget, in bytes, as the worker holds them."""
        worker: Any = self
        return {"settings": _settings(worker.vllm_config), "bytes": _terms(worker), "memory": memory_now()}

    def probe_memory(self, reset: bool) -> Answers:
        """Return the allocator's counters now; `reset` starts new peaks afterwards."""
        now = memory_now()
        if reset:
            _reset_peaks()
        return now

    def probe_ladder(self, tokens: Sequence[int], sequences: Sequence[int]) -> list[Answers]:
        """Measure the forward pass at several batch sizes and the sampler at several numbers of sequences."""
        worker: Any = self
        runner, steps = worker.model_runner, []
        limit = runner.vllm_config.scheduler_config
        with _engine_context(worker):
            for count in sizes(tokens, limit.max_num_batched_tokens):
                measured = _measured(lambda count=count: runner._dummy_run(count, is_profile=True))
                steps.append({"part": "forward", "tokens": count, **measured})
            for count in sizes(sequences, limit.max_num_seqs):
                hidden = _hidden_states(runner, count)
                measured = _measured(lambda hidden=hidden: runner._dummy_sampler_run(hidden))
                steps.append({"part": "sampler", "sequences": count, **measured})
        return steps

    def probe_trace(self) -> Answers:
        """Run vLLM's own profiling pass once more and return what was alive at its peak, by the line that asked."""
        import torch

        worker: Any = self
        if not torch.cuda.is_available():
            return {"peak_bytes": 0, "places": []}
        _settle()
        torch.cuda.memory._record_memory_history(max_entries=400_000, context="alloc", stacks="python")
        try:
            with _engine_context(worker):
                worker.model_runner.profile_run()
            history = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
        peak_bytes, alive = alive_at_peak(history)
        return {"peak_bytes": peak_bytes, "places": by_place(alive)}


def sizes(wanted: Sequence[int], limit: int) -> Iterator[int]:
    """Return the wanted sizes below the limit, then the limit."""
    yield from (size for size in wanted if size < limit)
    yield limit


def memory_now() -> Answers:
    """Return the allocator's counters and the device's free and total bytes; empty where there is no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        return {}
    stats = torch.cuda.memory_stats()
    free, total = torch.cuda.mem_get_info()
    names = ("allocated_bytes", "reserved_bytes", "active_bytes", "inactive_split_bytes")
    counters = {f"{name}.{kind}": stats.get(f"{name}.all.{kind}", 0) for name in names for kind in ("current", "peak")}
    return {**counters, "free_bytes": free, "total_bytes": total, "alloc_retries": stats.get("num_alloc_retries", 0)}


def _measured(step: Callable[[], object]) -> Answers:
    """Run a step on a settled device: how far the peak rose above the level before it, and what its results hold."""
    _settle()
    _reset_peaks()
    before = memory_now()
    kept = step()
    _settle()
    after = memory_now()
    del kept
    if not before:
        return {"peak_bytes": None, "held_bytes": None, "reserved_bytes": None}
    return {
        "peak_bytes": after["allocated_bytes.peak"] - before["allocated_bytes.current"],
        "held_bytes": after["allocated_bytes.current"] - before["allocated_bytes.current"],
        "reserved_bytes": after["reserved_bytes.peak"] - before["reserved_bytes.current"],
    }


def _settle() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _reset_peaks() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _hidden_states(runner: Any, rows: int) -> Any:
    import torch

    width = runner.model_config.get_hidden_size()
    return torch.zeros((rows, width), dtype=runner.dtype, device=runner.device)


def _engine_context(worker: Any) -> Any:
    from vllm.config import set_current_vllm_config

    return set_current_vllm_config(worker.vllm_config)


def _settings(config: Any) -> Answers:
    """What the engine runs with, after its defaults: vLLM's spelling, plain values."""
    model, cache, scheduler = config.model_config, config.cache_config, config.scheduler_config
    graphs = config.compilation_config
    captured = getattr(graphs, "cudagraph_capture_sizes", None) or []
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "max_model_len": model.max_model_len,
        "enforce_eager": model.enforce_eager,
        "quantization": None if model.quantization is None else str(model.quantization),
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "enable_chunked_prefill": getattr(scheduler, "enable_chunked_prefill", None),
        "block_size": cache.block_size,
        "cache_dtype": str(cache.cache_dtype),
        "enable_prefix_caching": cache.enable_prefix_caching,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "num_gpu_blocks": cache.num_gpu_blocks,
        "cudagraph_mode": getattr(getattr(graphs, "cudagraph_mode", None), "name", None),
        "cudagraph_capture_sizes": [len(captured), max(captured)] if captured else None,
        "compilation_mode": getattr(getattr(graphs, "mode", None), "name", None),
    }


def _terms(worker: Any) -> Answers:
    """The budget's terms. Which ones a worker holds differs by release: those it lacks are null."""
    runner, start = worker.model_runner, getattr(worker, "init_snapshot", None)
    terms = {
        "weights": getattr(runner, "model_memory_usage", None),
        "activation_peak": getattr(worker, "peak_activation_memory", None),
        "non_torch": getattr(worker, "non_torch_memory", None),
        "consumed": getattr(worker, "total_consumed", None),
        "cuda_graph_estimate": getattr(worker, "cudagraph_memory_estimate", None),
        "kv_cache": getattr(worker, "available_kv_cache_memory_bytes", None),
        "requested": getattr(worker, "requested_memory", None),
        "free_at_start": getattr(start, "free_memory", None),
        "gpu_memory": getattr(start, "total_memory", None),
        "kv_tensors": _storage_bytes(getattr(runner, "kv_caches", None)),
    }
    return {name: None if size is None else int(size) for name, size in terms.items()}


def _storage_bytes(tensors: Any) -> int | None:
    """Bytes of the distinct storages behind tensors in lists, tuples and mappings."""
    import torch

    storages: dict[int, int] = {}
    todo = [tensors]
    while todo:
        item = todo.pop()
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, (list, tuple)):
            todo += item
        elif isinstance(item, dict):
            todo += item.values()
    return sum(storages.values()) or None


def environment() -> Answers:
    """Return versions and the device's name; a package that is absent is null."""
    import torch

    found: Answers = {"python": sys.version.split()[0]}
    for package in ("vllm", "torch", "transformers", "triton", "flashinfer-python"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


def main() -> int:
    """Start the engine of an order and write what it answers."""
    if sys.argv[1] == "--environment":
        print(json.dumps(environment()))
        return 0
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers: Answers = {}
    answer_file = Path(order["answers"])

    def keep(name: str, value: object) -> None:
        answers[name] = value
        answer_file.write_text(json.dumps(answers), encoding="utf-8")

    started = time.monotonic()
    from vllm import LLM

    keep("import_seconds", round(time.monotonic() - started, 1))
    llm = LLM(model=order["folder"], worker_extension_cls="vllm_probe.MemoryProbe", **order["engine"])
    keep("start_seconds", round(time.monotonic() - started, 1))
    keep("facts", _ask(llm, "probe_facts"))
    if order.get("ladder"):
        keep("ladder", _ask(llm, "probe_ladder", order["ladder"]["tokens"], order["ladder"]["sequences"]))
    if order.get("trace"):
        keep("trace", _ask(llm, "probe_trace"))
    if order.get("request"):
        keep("request", _serve(llm, order["request"]))
    keep("finished", True)
    return 0


def _ask(llm: Any, method: str, *args: object) -> Any:
    """Call a probe in the worker. One that this release cannot run is answered with why, and ends nothing."""
    try:
        return llm.collective_rpc(method, args=args)[0]
    except Exception as error:  # whatever a release raises here is a finding, not a reason to lose the point
        return {"problem": f"{type(error).__name__}: {error}"[:400]}


def _serve(llm: Any, request: Any) -> Answers:
    """Send requests of dummy tokens at once; return the counters with the peaks reached while they ran."""
    from vllm import SamplingParams

    _ask(llm, "probe_memory", True)
    sampling = SamplingParams(
        max_tokens=request["output_tokens"],
        ignore_eos=True,
        detokenize=False,
        temperature=request.get("temperature", 1.0),
    )
    prompts = [{"prompt_token_ids": [1 + index % 97] * request["prompt_tokens"]} for index in range(request["count"])]
    try:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
    except Exception as error:  # an engine that dies under load is a finding, too
        return {"problem": f"{type(error).__name__}: {error}"[:400]}
    served = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"output_tokens": served, "memory": _ask(llm, "probe_memory", False)}


if __name__ == "__main__":
    sys.exit(main())
