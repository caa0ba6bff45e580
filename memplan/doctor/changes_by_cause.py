"""Which changes are tried against which cause, engine by engine: a table, in the order in which people would try
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.doctor import changes as vllm
from memplan.doctor.changes import Change, Changes, release
from memplan.doctor.facts import Facts, oom_free, oom_total
from memplan.units import GIB, MIB, round_up

_VLLM: Mapping[str, tuple[Changes, ...]] = {
    "kv_too_small_for_len": (
        vllm.raise_utilization,
        vllm.chunked,
        vllm.smaller_steps,
        vllm.fewer_requests,
        vllm.shorter,
        vllm.smaller_cache,
        vllm.more_gpus,
    ),
    "no_kv_blocks": (
        vllm.raise_utilization,
        vllm.fewer_requests,
        vllm.chunked,
        vllm.smaller_steps,
        vllm.text_only,
        vllm.narrower_weights,
        vllm.more_gpus,
    ),
    "free_memory_below_request": (vllm.end_others, vllm.fit_free),
    "sampler_oom": (vllm.fewer_requests, vllm.lower_utilization),
    "pooler_oom": (vllm.fewer_requests, vllm.lower_utilization),
    "profile_oom": (
        vllm.text_only,
        vllm.chunked,
        vllm.smaller_steps,
        vllm.fewer_requests,
        vllm.narrower_weights,
        vllm.more_gpus,
    ),
    "cuda_graph_oom": (vllm.lower_utilization, vllm.fewer_requests, vllm.no_graphs),
    "kv_allocation_oom": (vllm.lower_utilization,),
    "weights_oom": (vllm.more_gpus, vllm.narrower_weights, vllm.offloaded),
    "runtime_oom": (vllm.lower_utilization, vllm.smaller_steps, vllm.fewer_requests),
    "other_process": (vllm.end_others, vllm.lower_utilization),
    "preemption": (vllm.fewer_requests, vllm.raise_utilization, vllm.smaller_cache, vllm.more_gpus),
    "runs_full": (vllm.raise_utilization, vllm.smaller_cache, vllm.more_gpus),
    "context_exceeded": (vllm.raise_utilization, vllm.smaller_cache, vllm.more_gpus),
}


def changes_for(cause: str, facts: Facts) -> Iterator[Change]:
    """Yield what can be tried, as typed for the engine; nothing for a cause that needs none."""
    table = {"vllm": _VLLM, "sglang": _SGLANG, "llama.cpp": _LLAMA_CPP, "tensorrt-llm": _TENSORRT_LLM}
    own = table.get(facts.engine or "", {}).get(cause)
    for change in own or ():
        yield from change(facts)
    if not own:
        yield from _RULES.get(cause, ())
        for change in _TORCH.get(cause, ()):
            yield from change(facts)


# SGLang: the fraction goes up for a cache that has no room, and down for everything that lies outside of it.


def _fraction(facts: Facts, step: float) -> float | None:
    now = facts.share("mem_fraction_static")
    return None if now is None else round(min(0.97, max(0.1, now + step)), 2)


def _raise_fraction(facts: Facts) -> Iterator[Change]:
    total = facts.initial_bytes
    step = 0.05
    if total and facts.weights_bytes and (now := facts.share("mem_fraction_static")):
        step = max(step, round((facts.weights_bytes + 2 * GIB) / total - now, 2))
    new = _fraction(facts, step)
    yield Change(
        label=f"--mem-fraction-static {new:.2f}" if new else "--mem-fraction-static: a larger value",
        risk="low" if not new or new <= 0.92 else "medium",
        options={"set": [f"mem_fraction_static={new}"]} if new else {},
        room_bytes=int(step * total) if total and new else None,
        cures=None,
        note="RAISE it: the static part holds weights and cache",
    )


def _lower_fraction(facts: Facts) -> Iterator[Change]:
    total, wanted = oom_total(facts) or facts.initial_bytes, facts.wanted_bytes or 0
    missing = max(0, wanted - (oom_free(facts) or 0)) + GIB // 2
    step = max(0.03, round(missing / total, 2)) if total else 0.05
    new = _fraction(facts, -step)
    yield Change(
        label=f"--mem-fraction-static {new:.2f}" if new else "--mem-fraction-static: a smaller value",
        risk="low",
        options={"set": [f"mem_fraction_static={new}"]} if new else {},
        room_bytes=int(step * total) if total else None,
        cures=True if total and wanted else None,
        note="LOWER it: what failed lies outside of the static part",
    )


def _fewer_graphs(facts: Facts) -> Iterator[Change]:
    name = "--cuda-graph-max-bs-decode" if release(facts) >= (0, 5, 14) else "--cuda-graph-max-bs"
    yield Change(label=f"{name} 16", risk="low", note="larger batches then run without graphs")
    off = "--cuda-graph-backend-decode disabled" if release(facts) >= (0, 5, 20) else "--disable-cuda-graph"
    yield Change(label=off, risk="medium", note="slower decoding")


def _smaller_chunks(facts: Facts) -> Iterator[Change]:
    now = facts.integer("chunked_prefill_size")
    new = max(512, now // 2) if now and now > 512 else 2048
    yield Change(
        label=f"--chunked-prefill-size {new}",
        risk="low",
        options={"set": [f"chunked_prefill_size={new}"]},
        note=f"from {now:,}" if now else "",
    )


def _fewer_running(facts: Facts) -> Iterator[Change]:
    tokens, now = facts.kv_tokens, facts.integer("max_running_requests")
    new = max(1, min(now // 2 if now else 256, max(1, tokens // 2048) if tokens else 256))
    yield Change(label=f"--max-running-requests {new}", risk="low", options={"set": [f"max_running_requests={new}"]})


def _conservative(facts: Facts) -> Iterator[Change]:
    yield Change(label="--schedule-conservativeness 1.3", risk="low", note="admits as if answers were longer")


def _small_cache_sglang(facts: Facts) -> Iterator[Change]:
    if "fp8" not in str(facts.settings.get("kv_dtype", "")):
        yield Change(
            label="--kv-cache-dtype fp8_e5m2",
            risk="medium",
            options={"kv_dtype": "fp8"},
            needs_share=0.5,
            note="check quality first",
        )


def _ranks_sglang(facts: Facts) -> Iterator[Change]:
    ranks = facts.integer("tp") or 1
    if ranks < 8:
        yield Change(label=f"--tp-size {2 * ranks}", risk="low", options={"tp": 2 * ranks}, note="twice the GPUs")


_SGLANG: Mapping[str, tuple[Changes, ...]] = {
    "no_kv_blocks": (_raise_fraction, _small_cache_sglang, _ranks_sglang, vllm.narrower_weights),
    "cuda_graph_oom": (_lower_fraction, _fewer_graphs),
    "runtime_oom": (_lower_fraction, _smaller_chunks, _fewer_running),
    "kv_pool_exhausted": (_fewer_running, _conservative, _raise_fraction, _small_cache_sglang),
    "preemption": (_conservative, _fewer_running, _raise_fraction, _small_cache_sglang),
    "weights_oom": (_ranks_sglang, vllm.narrower_weights),
    "other_process": (vllm.end_others,),
}


# llama.cpp: what is on the GPU is layers, cache and one compute buffer for each device.


def left_for_cache(facts: Facts) -> int | None:
    """What the weights leave of a GPU's free memory, where llama.cpp says both."""
    if facts.free_bytes is None or facts.weights_bytes is None:
        return None
    return max(0, facts.free_bytes - facts.weights_bytes)


def _shorter_c(facts: Facts) -> Iterator[Change]:
    context, room = facts.integer("context"), left_for_cache(facts)
    new = max(512, (context or 16384) // 2 // 256 * 256)
    if context and room and facts.needed_bytes and "llama_kv_failed" in facts.seen and room < facts.needed_bytes:
        new = max(512, int(0.9 * context * room / facts.needed_bytes) // 256 * 256)
    held = facts.available_bytes or (facts.needed_bytes if "llama_kv_failed" in facts.seen else None)
    yield Change(
        label=f"-c {new}",
        risk="low",
        options={"context": str(new)},
        room_bytes=int(held * (1 - new / context)) if held and context else held // 2 if held else None,
        note=f"from {context:,}" if context else "",
    )


def _q8_cache(facts: Facts) -> Iterator[Change]:
    held = facts.available_bytes or (facts.needed_bytes if "llama_kv_failed" in facts.seen else None)
    yield Change(
        label="-fa on -ctk q8_0 -ctv q8_0",
        risk="medium",
        options={"kv_dtype": "q8_0"},
        room_bytes=int(held * 15 / 32) if held else None,
        note="34 bytes for every 32 numbers instead of 64",
    )


def _small_batch(facts: Facts) -> Iterator[Change]:
    now = facts.integer("ubatch_size") or 512
    held = facts.activation_bytes or (facts.needed_bytes if "llama_gallocr" in facts.seen else None)
    yield Change(
        label=f"-ub {max(64, now // 2)}",
        risk="low",
        options={"ubatch_size": str(max(64, now // 2))},
        room_bytes=held // 2 if held else None,
        note="slower prompts",
    )


def _flash(facts: Facts) -> Iterator[Change]:
    flash = facts.seen.last("llama_flash")
    if flash is None or flash.values.get("flash") in ("0", "false", "disabled", "off"):
        yield Change(
            label="-fa on",
            risk="low",
            options={"flash_attention": "on"},
            note="else the compute buffer grows with the context",
        )


def _fewer_layers(facts: Facts) -> Iterator[Change]:
    place = facts.seen.last("llama_offloaded", "ollama_offload")
    all_layers = place.number("all") if place else None
    layers = place.number("layers") if place else None
    free, wanted = facts.free_bytes, facts.needed_bytes or facts.weights_bytes
    if layers and wanted and free and wanted > free:
        layers = max(0, int(layers * free * 0.9 / wanted))
    elif layers:
        layers = max(0, int(layers * 0.8))
    yield Change(
        label=f"-ngl {layers:.0f}" if layers is not None else "-ngl: fewer layers",
        risk="medium",
        options={"n_gpu_layers": f"{layers:.0f}"} if layers is not None else {},
        note=f"of {all_layers:.0f}; the rest run on the processor" if all_layers else "the rest run on the processor",
    )


def _experts(facts: Facts) -> Iterator[Change]:
    yield Change(
        label="--n-cpu-moe N", risk="medium", note="for a mixture of experts: only experts stay in host memory"
    )


def _fit(facts: Facts) -> Iterator[Change]:
    yield Change(
        label="leave -ngl and -c out", risk="low", note="newer builds fit what is not given to the free memory"
    )


_LLAMA_CPP: Mapping[str, tuple[Changes, ...]] = {
    "kv_allocation_oom": (_shorter_c, _q8_cache, _fewer_layers),
    "compute_buffer_oom": (_flash, _small_batch, _shorter_c, _fewer_layers),
    "weights_oom": (_fewer_layers, _experts, _fit),
    "runtime_oom": (_small_batch, _shorter_c, _fewer_layers),
    "does_not_fit": (_fit, _fewer_layers, _shorter_c),
    "host_oom": (_shorter_c, _fit),
}


# TensorRT-LLM: its fraction is of what is free once weights and buffers are there.


def _fraction_down(facts: Facts) -> Iterator[Change]:
    now = facts.share("free_gpu_memory_fraction") or 0.9
    new = round(max(0.1, now - 0.1), 2)
    room = int((now - new) * (facts.free_bytes or 0)) or None
    yield Change(
        label=f"kv_cache_config.free_gpu_memory_fraction: {new:g}",
        risk="low",
        options={"set": [f"free_gpu_memory_fraction={new:g}"]},
        room_bytes=room,
        note=f"from {now:g}",
    )


def _fraction_up(facts: Facts) -> Iterator[Change]:
    now = facts.share("free_gpu_memory_fraction") or 0.9
    if now < 0.95:
        yield Change(
            label="kv_cache_config.free_gpu_memory_fraction: 0.95",
            risk="medium",
            options={"set": ["free_gpu_memory_fraction=0.95"]},
            room_bytes=int((0.95 - now) * (facts.free_bytes or 0)) or None,
            note=f"from {now:g}",
        )


def _short_trt(facts: Facts) -> Iterator[Change]:
    if facts.longest_tokens:
        yield Change(
            label=f"max_seq_len: {facts.longest_tokens}",
            risk="low",
            options={"set": [f"max_seq_len={facts.longest_tokens}"]},
            cures=True,
            note="what it was cut to, said outright",
        )


def _steps_trt(facts: Facts) -> Iterator[Change]:
    yield Change(label="max_num_tokens: 2048", risk="low", options={"set": ["max_num_tokens=2048"]})
    yield Change(label="max_batch_size: 64", risk="low", options={"set": ["max_batch_size=64"]})


def _fp8_trt(facts: Facts) -> Iterator[Change]:
    yield Change(
        label="kv_cache_config.dtype: fp8",
        risk="medium",
        options={"kv_dtype": "fp8"},
        needs_share=0.5,
        note="check quality first",
    )


def _ranks_trt(facts: Facts) -> Iterator[Change]:
    yield Change(label=f"tensor_parallel_size: {2 * (facts.integer('tp') or 1)}", risk="low", note="twice the GPUs")


_TENSORRT_LLM: Mapping[str, tuple[Changes, ...]] = {
    "no_kv_blocks": (_steps_trt, _fraction_up, _fp8_trt, _ranks_trt),
    "kv_too_small_for_len": (_short_trt, _fraction_up, _fp8_trt, _steps_trt, _ranks_trt),
    "runtime_oom": (_fraction_down, _steps_trt),
    "weights_oom": (_ranks_trt,),
    "profile_oom": (_steps_trt, _fraction_down),
}


# PyTorch programs, and the host.


def _segments(facts: Facts) -> Iterator[Change]:
    yield Change(
        label="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        risk="low",
        room_bytes=facts.unallocated_bytes,
        note="segments grow instead of leaving gaps",
    )
    size = round_up(max(1, (facts.wanted_bytes or 0) // MIB), 64) if facts.wanted_bytes else 512
    yield Change(
        label=f"PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:{max(128, min(size, 4096))}",
        risk="low",
        note="before PyTorch 2.0, which has no expandable segments",
    )


def _end_others(facts: Facts) -> Iterator[Change]:
    yield from vllm.end_others(facts)


_TORCH: Mapping[str, tuple[Changes, ...]] = {
    "fragmentation": (_segments,),
    "other_process": (_end_others,),
}
_CHECKPOINTING = Change(
    label="gradient_checkpointing=True",
    risk="low",
    note="activations are computed again: a quarter to a third more time",
)
_SMALL_BATCH = Change(
    label="per_device_train_batch_size=1 with gradient_accumulation_steps raised",
    risk="low",
    note="the same global batch",
)
_ADAPTERS = Change(
    label="LoRA or QLoRA instead of full fine-tuning", risk="medium", note="states of the adapters alone"
)
_SHARD = Change(label="FSDP or ZeRO-3 over more GPUs", risk="low", note="weights, gradients and states are shared out")
_EIGHT_BIT = Change(label='optim="adamw_bnb_8bit"', risk="low", note="states take a quarter")
_LIGER = Change(
    label="use_liger_kernel=True", risk="low", note="the loss is computed in pieces: logits are never whole"
)
_NARROW = Change(label="load in 4 bit (bitsandbytes) or 16 bit", risk="medium", note="check quality first")
_ACROSS = Change(label='device_map="auto" over more GPUs', risk="low")
_SHORT = Change(label="shorter sequences, or a smaller batch", risk="low")
_MEMORY = Change(label="raise the container's memory limit (--memory, resources.limits.memory)", risk="low", cures=None)
_SHM = Change(
    label="--shm-size 16g, or --ipc=host; in Kubernetes an emptyDir with medium: Memory at /dev/shm",
    risk="low",
    cures=True,
)
_RULES: Mapping[str, tuple[Change, ...]] = {
    "free_but_refused": (
        Change(label="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", risk="low"),
        Change(label="a larger page file (Windows), or a higher commit limit", risk="low"),
    ),
    "process_limit": (
        Change(label="torch.cuda.set_per_process_memory_fraction: a larger part", risk="low", cures=None),
    ),
    "library_oom": (
        Change(
            label="a smaller batch, or torch.cuda.empty_cache() before",
            risk="low",
            note="leaves room outside of the pool",
        ),
        Change(label="PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", risk="low"),
    ),
    "optimizer_oom": (_EIGHT_BIT, _ADAPTERS, _SHARD),
    "activations_oom": (_CHECKPOINTING, _SMALL_BATCH, _LIGER, _SHORT),
    "loss_oom": (_LIGER, _SMALL_BATCH, _SHORT, _CHECKPOINTING),
    "training_oom": (_SMALL_BATCH, _CHECKPOINTING, _EIGHT_BIT, _ADAPTERS, _SHARD),
    "evaluation_oom": (
        Change(
            label="eval_accumulation_steps=1, or prediction_loss_only=True", risk="low", note="logits go to the host"
        ),
        Change(label="per_device_eval_batch_size=1", risk="low"),
    ),
    "generation_oom": (_SHORT, _NARROW, _ACROSS),
    "weights_oom": (_NARROW, _ACROSS),
    "capacity": (_SHORT, _NARROW, _ACROSS),
    "container_limit": (_MEMORY, Change(label="low_cpu_mem_usage=True; fewer loading workers", risk="low")),
    "host_oom": (
        Change(label="more host memory or swap", risk="low"),
        Change(
            label="low_cpu_mem_usage=True, or safetensors in place of .bin files", risk="low", note="no second copy"
        ),
    ),
    "shared_memory": (_SHM,),
    "workspace_too_small": (
        Change(
            label="SGLANG_FLASHINFER_WORKSPACE_SIZE=1073741824",
            risk="low",
            note="SGLang; vLLM: VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE",
        ),
        Change(label="a smaller chunked prefill, or fewer running requests", risk="low"),
    ),
    "kernel_shared_memory": (Change(label="another attention or MoE backend, or smaller block sizes", risk="low"),),
    "memory_changed_while_profiling": (
        Change(label="start engines one after the other on a shared GPU", risk="none", cures=True),
        Change(label="--kv-cache-memory-bytes SIZE (from 0.10.2 on)", risk="low", note="skips the measurement"),
    ),
    "step_below_context": (
        Change(label="--enable-chunked-prefill", risk="low", options={"chunked_prefill": True}, cures=True),
        Change(label="--max-num-batched-tokens: at least --max-model-len", risk="low", cures=True),
    ),
    "step_below_requests": (Change(label="--max-num-seqs: at most --max-num-batched-tokens", risk="low", cures=True),),
    "state_blocks": (Change(label="--max-num-seqs: at most the number of states", risk="low", cures=True),),
    "swap_too_large": (Change(label="--swap-space 0", risk="low", cures=True),),
    "shards_uneven": (Change(label="--tensor-parallel-size: one that divides", risk="low", cures=True),),
    "not_quantized": (
        Change(label="leave --quantization out", risk="none", cures=True, note="weights then take their full size"),
        Change(label="a checkpoint that is stored in that format", risk="low", cures=True),
    ),
    "quantization_mismatch": (Change(label="leave --quantization out", risk="none", cures=True),),
    "unknown_option": (Change(label="leave the option out", risk="low", cures=True),),
    "graph_capture_failed": (
        Change(label="--disable-cuda-graph", risk="medium", note="slower decoding, and the real error shows"),
    ),
    "build_oom": (Change(label="smaller max_batch_size and max_num_tokens in the build", risk="low"),),
    "context_exceeded": (Change(label="-c larger, or fewer slots (-np 1)", risk="low", note="llama-server"),),
}
