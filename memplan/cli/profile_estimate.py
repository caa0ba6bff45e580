"""A profile beside the estimate of the same run: what `memplan estimate --engine transformers` says of each phase."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from memplan.cli.corrections import ACTIVATIONS, ATTENTION, ENGINE, FRAGMENTS
from memplan.domain.budget import Line, MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings, Workload
from memplan.domain.timeline import Compared, MemoryTimeline, Phase, PhaseMemory
from memplan.errors import MemplanError
from memplan.records import replace

_FRAGMENT_LINE = "allocator fragments"
_WORKSPACE_LINE = "cuBLAS workspace"
# A device on which everything has room: what a phase takes does not depend on what is left beside it.
_ROOM_BYTES = 1 << 44


def compared(timeline: MemoryTimeline, spec: ModelSpec, gpu: GpuSpec | None) -> tuple[Compared, ...]:
    """Return every term of the phases that the estimate knows, profiled and estimated; none where it does not apply."""
    if timeline.device == "cpu" or str(timeline.settings.get("attention")) not in ATTENTION:
        return ()
    found: list[Compared] = []
    done: set[Phase] = set()
    for phase in timeline.phases:
        if phase.phase in done or phase.phase not in ("prefill", "decode", "generate"):
            continue
        done.add(phase.phase)
        runs = [each for each in timeline.phases if each.phase == phase.phase]
        fullest = max(runs, key=lambda run: run.peak.allocated_bytes)
        budget = _estimate(timeline, phase.phase, spec, gpu)
        if budget is not None:
            found += _terms(fullest, budget, with_reserved=fullest is timeline.peak)
    return tuple(found)


def _estimate(timeline: MemoryTimeline, phase: Phase, spec: ModelSpec, gpu: GpuSpec | None) -> MemoryBudget | None:
    """The budget whose fullest moment is in the phase; None for a run that the engine refuses."""
    from memplan.catalog.gpus import find_gpu
    from memplan.pipeline import Question, answer

    settings = timeline.settings
    prompt, output, batch = (_number(settings, name) for name in ("prompt_tokens", "output_tokens", "batch"))
    # The prefill of a whole prompt, or a decode after the shortest prompt: each is the fullest moment of its run.
    context, new = {
        "prefill": (prompt + 1, 1),
        "decode": (prompt + output, max(1, prompt + output - 2)),
    }.get(phase, (prompt + output, output))
    roomy = replace(
        gpu or find_gpu("a100-80g"),
        memory_bytes=_ROOM_BYTES,
        visible_low_bytes=_ROOM_BYTES,
        visible_high_bytes=_ROOM_BYTES,
    )
    asked = ServingSettings(
        workload=Workload(context_tokens=context, concurrency=batch),
        dtype=str(settings.get("dtype") or "auto"),
        engine_options={
            "max_new_tokens": new,
            "padding": False,
            "device_map": "cuda",
            **({"attn_implementation": "eager"} if settings.get("attention") == "eager" else {}),
            **({"cache_implementation": "static"} if settings.get("cache") == "static" else {}),
        },
    )
    question = Question(
        spec=spec, base_spec=spec, gpu=roomy, settings=asked, engine=ENGINE, version=None, with_remedies=False
    )
    try:
        return answer(question)
    except MemplanError:
        return None


def _number(settings: dict[str, object], name: str) -> int:
    found = settings.get(name)
    return found if isinstance(found, int) and found > 0 else 1


def _terms(phase: PhaseMemory, budget: MemoryBudget, *, with_reserved: bool) -> Iterator[Compared]:
    """The terms of a phase. What is reserved beyond the allocated is the run's, and so is told of its fullest phase."""
    held = phase.by_category
    weights, cache = held.get("weights", 0), held.get("kv_cache", 0)
    lines = {
        "weights": [line for line in budget.lines if line.group == "weights"],
        "KV cache": [line for line in budget.lines if line.group == "kv_cache"],
        ACTIVATIONS: [
            line
            for line in budget.lines
            if (line.group == "activation_peak" and line.name != _FRAGMENT_LINE) or line.name == _WORKSPACE_LINE
        ],
    }
    measured = {
        "weights": weights,
        "KV cache": cache,
        ACTIVATIONS: phase.peak.allocated_bytes - weights - cache,
    }
    if with_reserved:
        lines[FRAGMENTS] = [line for line in budget.lines if line.name == _FRAGMENT_LINE]
        measured[FRAGMENTS] = max(0, phase.peak_reserved_bytes - phase.peak.allocated_bytes)
    for term, found in lines.items():
        yield _compared(phase.phase, term, measured[term], found)
    together = [line for found in lines.values() for line in found]
    yield _compared(phase.phase, "together", sum(measured.values()), together)


def _compared(phase: Phase, term: str, measured_bytes: int, lines: Iterable[Line]) -> Compared:
    lines = list(lines)
    return Compared(
        phase=phase,
        term=term,
        measured_bytes=measured_bytes,
        estimated_bytes=sum(line.size_bytes for line in lines),
        low_bytes=sum(line.low_bytes for line in lines),
        high_bytes=sum(line.high_bytes for line in lines),
    )
