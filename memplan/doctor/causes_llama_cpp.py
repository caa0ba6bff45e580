"""What ends llama.cpp, llama-server and Ollama: which of the buffers did not fit, and on which device."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor.facts import Facts
from memplan.doctor.telling import Refusal, refused, size, tokens, told
from memplan.domain.diagnosis import Diagnosis

_ALLOC = ("llama_alloc", "llama_gallocr", "llama_vulkan", "llama_metal", "oom_driver")
_HOST_MEMORY = Refusal(
    at="ollama_system",
    cause="host_oom",
    sentence="the model needs {needed:size} of host memory and {free:size} are available",
    because="layers that are not on the GPU stay in host memory",
)


def causes(facts: Facts) -> Iterator[Diagnosis]:
    """The buffer that failed; weights, cache and compute buffer are allocated in that order and say so."""
    seen = facts.seen
    yield from refused(facts, (_HOST_MEMORY,))
    yield from _buffers(facts)
    if place := seen.last("llama_exceeds", "llama_slot"):
        wanted, context = place.number("tokens"), place.number("context") or facts.integer("context")
        limit = f" of {context:,.0f} tokens" if context else ""
        asked = f"{wanted:,.0f} tokens" if wanted else "a request"
        yield told(
            facts,
            "context_exceeded",
            f"{asked} do not fit the context{limit} that a slot has",
            because="with several slots the context is shared: each has its part of -c",
            at=(place.name,),
        )
    if "llama_cannot_fit" in seen and "llama_fit" in seen:
        yield told(
            facts,
            "does_not_fit",
            f"{size(seen.high('llama_fit', 'needed'))} of device memory are needed and {size(facts.free_bytes)} "
            "are free",
            severity="warning",
            because="what was given outright is not changed to fit",
            at=("llama_fit",),
        )


def _buffers(facts: Facts) -> Iterator[Diagnosis]:
    seen = facts.seen
    failed = [name for name in _ALLOC if name in seen]
    wanted = (
        facts.needed_bytes if any(name in seen for name in ("llama_alloc", "llama_gallocr", "llama_vulkan")) else None
    )
    place = seen.last("llama_alloc", "llama_gallocr", "llama_vulkan")
    device = f" on device {place.values['device']}" if place and "device" in place.values else ""
    asked = f" of {size(wanted)}" if wanted else ""
    if "llama_kv_failed" in seen:
        yield told(
            facts,
            "kv_allocation_oom",
            f"the KV cache{asked} for {tokens(facts.integer('context'))} did not fit{device}"
            if facts.integer("context")
            else f"the KV cache{asked} did not fit{device}",
            because="llama.cpp allocates the cache of the whole context at the start; its size grows with -c",
            at=("llama_alloc", "llama_kv_failed"),
        )
    elif "llama_compute_failed" in seen or ("llama_gallocr" in seen and "llama_weights_failed" not in seen):
        went_on = "llama_ready" in seen and "llama_retry" in seen
        rest = "; it went on without pipeline parallelism" if went_on else ""
        yield told(
            facts,
            "compute_buffer_oom",
            f"the compute buffer{asked} did not fit{device}{rest}",
            severity="warning" if went_on else "error",
            because="it grows with -ub, and with the context where flash attention is off; several GPUs hold "
            "four copies",
            at=("llama_gallocr", "llama_alloc", "llama_compute_failed"),
        )
    elif "llama_weights_failed" in seen:
        yield told(
            facts,
            "weights_oom",
            f"a weight buffer{asked} did not fit{device}",
            because="-ngl puts more layers on the GPU than it holds, or --tensor-split gives one GPU too much",
            at=("llama_weights_failed", "llama_alloc"),
        )
    elif failed:
        yield told(
            facts,
            "weights_oom" if place and "llama_ready" not in seen else "runtime_oom",
            f"an allocation{asked} failed{device}" + (" while requests were served" if "llama_ready" in seen else ""),
            because="pools of the backend grow in use, beyond the buffers that the log lists",
            at=tuple(failed),
            is_certain=False,
        )
