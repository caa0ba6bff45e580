"""What can be changed under TensorRT-LLM: its fraction is of what is free once weights and buffers are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.doctor.changes import Change, Changes
from memplan.doctor.facts import Facts


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


CHANGES: Mapping[str, tuple[Changes, ...]] = {
    "no_kv_blocks": (_steps_trt, _fraction_up, _fp8_trt, _ranks_trt),
    "kv_too_small_for_len": (_short_trt, _fraction_up, _fp8_trt, _steps_trt, _ranks_trt),
    "runtime_oom": (_fraction_down, _steps_trt),
    "weights_oom": (_ranks_trt,),
    "profile_oom": (_steps_trt, _fraction_down),
}
