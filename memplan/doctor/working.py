"""Term by term: what the budget gives beside what was measured, so that it shows which of them was off."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.doctor.facts import Facts, oom_total
from memplan.doctor.mends import available_bytes
from memplan.domain.budget import Group, MemoryBudget
from memplan.domain.diagnosis import WhyLine

_GROUPS: tuple[tuple[str, Group, str], ...] = (
    ("weights", "weights", "weights_bytes"),
    ("activations at the peak", "activation_peak", "activation_bytes"),
    ("outside of PyTorch", "non_torch", "non_torch_bytes"),
    ("CUDA graphs", "cuda_graph", "graphs_bytes"),
)
_LLAMA_CPP = {
    "activations at the peak": "compute buffer",
    "outside of PyTorch": "outside of the buffers",
    "KV cache available": "KV cache",
}


def why(facts: Facts, budget: MemoryBudget | None) -> tuple[WhyLine, ...]:
    """Return the terms that are known on either side, in the order in which an engine takes them."""
    return tuple(line for line in _lines(facts, budget) if line.budget is not None or line.measured is not None)


def _lines(facts: Facts, budget: MemoryBudget | None) -> Iterator[WhyLine]:
    names = _LLAMA_CPP if facts.engine == "llama.cpp" else {}
    yield WhyLine(
        term="GPU memory", unit="bytes", budget=budget.gpu_memory_bytes if budget else None, measured=oom_total(facts)
    )
    if facts.engine != "llama.cpp":
        yield WhyLine(
            term="the engine's part",
            unit="bytes",
            budget=_part(budget),
            measured=facts.requested_bytes,
        )
    for term, group, name in _GROUPS:
        size = budget.group_bytes(group) if budget else None
        measured = getattr(facts, name)
        if size or measured is not None:
            yield WhyLine(term=names.get(term, term), unit="bytes", budget=size, measured=measured)
    available = available_bytes(budget) if budget else None
    yield WhyLine(
        term=names.get("KV cache available", "KV cache available"),
        unit="bytes",
        budget=available,
        measured=facts.available_bytes,
    )
    needed = facts.needed_bytes if facts.engine != "llama.cpp" else None
    context = budget.settings.get("max_model_len") if budget else None
    note = f"one request of {context:,} tokens" if isinstance(context, int) else ""
    yield WhyLine(
        term="KV cache needed",
        unit="bytes",
        budget=budget.kv.needed_bytes if budget else None,
        measured=needed,
        note=note,
    )
    yield WhyLine(
        term="KV cache", unit="tokens", budget=budget.kv.capacity_tokens if budget else None, measured=facts.kv_tokens
    )
    for term, name in (
        ("asked for when it ran out", "wanted_bytes"),
        ("allocated by PyTorch", "allocated_bytes"),
        ("reserved and unused", "unallocated_bytes"),
    ):
        yield WhyLine(term=term, unit="bytes", measured=getattr(facts, name))


def _part(budget: MemoryBudget | None) -> int | None:
    share = budget.settings.get("gpu_memory_utilization") if budget else None
    return int(budget.gpu_memory_bytes * share) if budget and isinstance(share, float) else None
