"""What ends TensorRT-LLM, and what it does without saying much: a pool that is too small shortens the longest
request.
"""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor.facts import Facts, oom_free
from memplan.doctor.telling import size, tokens, told
from memplan.domain.diagnosis import Diagnosis

_OOM = ("trtllm_malloc", "oom_driver", "oom", "oom_short", "trtllm_builder", "trtllm_workspace")
_LITTLE = 1 << 30


def causes(facts: Facts) -> Iterator[Diagnosis]:
    """The pool first, since it is what is left; then allocations that failed."""
    seen = facts.seen
    if "trtllm_builder" in seen:
        wanted = seen.last("trtllm_builder")
        yield told(
            facts,
            "build_oom",
            f"the engine build wanted {size(wanted.number('wanted') if wanted else None)} and did not get it",
            because="tactics are timed with workspaces of their own",
            at=("trtllm_builder",),
        )
    elif any(name in seen for name in _OOM):
        yield _ran_out(facts)
    elif "trtllm_no_kv" in seen or "trtllm_no_blocks" in seen or facts.kv_blocks == 0:
        yield told(
            facts,
            "no_kv_blocks",
            f"nothing is left for the KV cache: {size(facts.free_bytes)} are free after the engine",
            because="the pool is a part of what is free once weights and buffers are there",
            at=("trtllm_no_kv", "trtllm_no_blocks", "trtllm_blocks"),
        )
    if "trtllm_reduced" in seen:
        yield told(
            facts,
            "kv_too_small_for_len",
            f"the KV pool does not hold the longest request; it was cut to {tokens(facts.longest_tokens)} "
            f"without an error",
            severity="warning",
            because="longer requests are refused or cut from then on",
            at=("trtllm_reduced",),
        )


def _ran_out(facts: Facts) -> Diagnosis:
    free = facts.free_bytes
    if "trtllm_workspace" in facts.seen and free is None:
        return told(
            facts,
            "profile_oom",
            "a workspace of the engine did not fit beside weights and cache",
            because="its size grows with max_num_tokens and max_batch_size",
            at=("trtllm_workspace",),
        )
    if free is not None and free < _LITTLE:
        return told(
            facts,
            "no_kv_blocks",
            f"{size(free)} of {size(facts.total_bytes)} are left for the KV cache once the engine and its buffers are "
            "allocated, and the next allocation failed",
            because="the pool is a part of what is free then",
            at=_OOM,
        )
    if facts.available_bytes is not None or "trtllm_kv" in facts.seen:
        return told(
            facts,
            "runtime_oom",
            "memory ran out after the KV pool was allocated"
            + (f", asking for {size(facts.wanted_bytes)}" if facts.wanted_bytes else "")
            + (f" with {size(oom_free(facts))} free" if oom_free(facts) is not None else ""),
            because="the pool takes its fraction of everything that was free, and leaves what is left to workspaces",
            at=_OOM,
        )
    return told(
        facts,
        "weights_oom",
        "memory ran out while the engine was loaded",
        because="weights and buffers of one rank are larger than the GPU",
        at=_OOM,
        is_certain=False,
    )
