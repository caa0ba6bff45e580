"""A log, a traceback or what a person pasted: from facts to a report."""

from __future__ import annotations

from memplan.doctor.causes import find_causes
from memplan.doctor.facts import Facts
from memplan.doctor.mends import Recompute, available_bytes, with_mends
from memplan.doctor.smi import smi_diagnoses
from memplan.doctor.telling import size
from memplan.doctor.working import why
from memplan.domain.budget import MemoryBudget
from memplan.domain.diagnosis import Diagnosis, DoctorReport, Kind, Recognised
from memplan.records import replace

_NAMES = {"vllm": "vLLM", "sglang": "SGLang", "llama.cpp": "llama.cpp", "tensorrt-llm": "TensorRT-LLM"}
_ALLOCATOR = (
    "oom",
    "oom_short",
    "oom_driver",
    "oom_exceeds",
    "oom_mps",
    "oom_wanted",
    "cublas_alloc",
    "host_alloc",
    "jax_oom",
)
_KERNEL = ("kernel_killed", "kernel_killed_old", "kernel_constraint", "kernel_invoked", "oom_killed", "exit_137")


def report_of(facts: Facts, budget: MemoryBudget | None = None, recompute: Recompute | None = None) -> DoctorReport:
    """Return the report of a text; with a budget its terms stand beside what was measured, and mends are computed."""
    recognised = recognise(facts)
    found = list(find_causes(facts))
    if recognised.kind == "nvidia-smi":
        found = [*(each for each in found if each.severity == "error"), *smi_diagnoses(facts)]
    if not found and budget is not None:
        found = _by_budget(budget)
    working = why(facts, budget)
    diagnoses = [with_mends(each, facts, budget, recompute) for each in found]
    if diagnoses:
        diagnoses[0] = replace(diagnoses[0], why=working)
    return DoctorReport(
        recognised=recognised,
        diagnoses=tuple(diagnoses),
        settings=dict(facts.settings),
        budget_of=budget_of(budget),
        needs=_needs(facts, recognised.kind, diagnoses, budget),
    )


def recognise(facts: Facts) -> Recognised:
    """What the text is, and by which signs that was told."""
    seen = facts.seen
    signs = tuple(name for name in seen.names() if not name.startswith(("_", "says_", "at_", "command_")))[:12]
    kind: Kind
    if facts.engine is not None:
        kind, name = "engine log", f"a log of {_NAMES.get(facts.engine, facts.engine)}"
    elif "smi" in seen or ("smi_memory" in seen or "smi_csv" in seen):
        kind, name = "nvidia-smi", "nvidia-smi's table"
    elif any(each in seen for each in _ALLOCATOR):
        kind, name = "traceback", "a traceback of a program that ran out of memory"
    elif any(each in seen for each in _KERNEL):
        kind, name = "kernel log", "a log of the kernel or of a container"
    elif any(each.startswith(("says_", "command_")) for each in seen.names()):
        kind, name = "text", "text about a run"
    else:
        kind, name = "unknown", "nothing that is known"
    return Recognised(
        kind=kind,
        name=name,
        engine=facts.engine,
        version=facts.version,
        generation=facts.generation,
        num_lines=facts.scanned.num_lines,
        size_bytes=facts.scanned.num_bytes,
        signs=signs,
    )


def _by_budget(budget: MemoryBudget) -> list[Diagnosis]:
    """What the settings come to, where the text does not say how it ended."""
    return [budget_diagnosis(budget)] if budget.verdict == "does_not_fit" else []


def budget_diagnosis(budget: MemoryBudget) -> Diagnosis:
    """Which limit a setup that does not fit meets first."""
    available, weights = available_bytes(budget), budget.group_bytes("weights")
    if weights > budget.gpu_memory_bytes:
        cause = "weights_oom"
        sentence = f"weights of {size(weights)} on each GPU are larger than its {size(budget.gpu_memory_bytes)}"
    elif available <= 0 or budget.kv.capacity_tokens == 0:
        cause = "no_kv_blocks"
        sentence = f"weights of {size(weights)} and a step leave nothing for the KV cache"
    else:
        cause = "kv_too_small_for_len"
        sentence = f"the requests need {size(budget.kv.needed_bytes)} of KV cache, the budget leaves {size(available)}"
    return Diagnosis(cause=cause, severity="error", sentence=sentence, because="by the budget alone", is_certain=False)


def budget_of(budget: MemoryBudget | None) -> str:
    """A budget's subject in words."""
    if budget is None:
        return ""
    gpus = f"{budget.num_gpus} x {budget.gpu_name}" if budget.num_gpus > 1 else budget.gpu_name
    return (
        f"{budget.model_name} on {gpus}, {_NAMES.get(budget.engine_name, budget.engine_name)} {budget.engine_version}"
    )


def _needs(facts: Facts, kind: Kind, found: list[Diagnosis], budget: MemoryBudget | None) -> tuple[str, ...]:
    """What would tell more."""
    needs: list[str] = []
    if not found:
        needs.append("the lines in which it failed: from the first ERROR or Traceback to the end")
    if facts.engine and budget is None:
        if "model" not in facts.settings:
            needs.append("the model: --model NAME")
        elif facts.settings.get("model"):
            needs.append("a model that is known here: --model NAME")
        if not facts.total_bytes:
            needs.append("the GPU: --gpu NAME")
    if facts.engine in ("vllm", "sglang") and facts.version is None and budget is not None:
        needs.append(f"the release: --engine {facts.engine}@VERSION (the newest was taken)")
    if kind == "kernel log" and "oom_killed" in facts.seen and "kernel_killed" not in facts.seen:
        needs.append("the kernel's own lines: dmesg -T | grep -i -A2 oom")
    return tuple(needs)
