"""Which changes are tried against which cause, engine by engine: a table, in the order in which people would try
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.doctor import changes as vllm
from memplan.doctor import changes_llama_cpp, changes_sglang, changes_tensorrt_llm, changes_torch
from memplan.doctor.changes import Change, Changes
from memplan.doctor.facts import Facts

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
    table = {
        "vllm": _VLLM,
        "sglang": changes_sglang.CHANGES,
        "llama.cpp": changes_llama_cpp.CHANGES,
        "tensorrt-llm": changes_tensorrt_llm.CHANGES,
    }
    own = table.get(facts.engine or "", {}).get(cause)
    for change in own or ():
        yield from change(facts)
    if not own:
        yield from changes_torch.RULES.get(cause, ())
        for change in changes_torch.CHANGES.get(cause, ()):
            yield from change(facts)
