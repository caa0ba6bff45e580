"""What can be changed under llama.cpp: on the GPU are layers, the cache and one compute buffer for each device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.doctor.changes import Change, Changes
from memplan.doctor.facts import Facts


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


CHANGES: Mapping[str, tuple[Changes, ...]] = {
    "kv_allocation_oom": (_shorter_c, _q8_cache, _fewer_layers),
    "compute_buffer_oom": (_flash, _small_batch, _shorter_c, _fewer_layers),
    "weights_oom": (_fewer_layers, _experts, _fit),
    "runtime_oom": (_small_batch, _shorter_c, _fewer_layers),
    "does_not_fit": (_fit, _fewer_layers, _shorter_c),
    "host_oom": (_shorter_c, _fit),
}
