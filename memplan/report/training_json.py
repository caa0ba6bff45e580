"""Training budgets as JSON, in the contract that scripts rely on (docs/schemas/memplan.training-estimate.json)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from memplan.domain.training_budget import Category, Phase, TrainingBudget, TrainingLine, TrainingRemedy
from memplan.report.json_report import dump


def training_json(budgets: Sequence[TrainingBudget], left_out: Sequence[str] | None = None) -> str:
    """Return one object for one budget; a list under a schema of its own for several, and where no GPU was named."""
    if left_out is None and len(budgets) == 1:
        return dump(training_object(budgets[0]))
    content: dict[str, object] = {
        "schema": "memplan.training-estimates/1",
        "estimates": [training_object(each) for each in budgets],
    }
    return dump({**content, "left_out": list(left_out)} if left_out is not None else content)


def training_object(budget: TrainingBudget) -> dict[str, object]:
    """Return a budget as plain values; all sizes are whole bytes, per GPU of the fullest rank."""
    content: dict[str, object] = {
        "schema": "memplan.training-estimate/1",
        "model": {
            "name": budget.model_name,
            "architecture": budget.architecture,
            "parameters": budget.parameters,
            "active_parameters": budget.active_parameters,
            "trained_parameters": budget.trained_parameters,
            "weights_source": budget.weights_source,
        },
        "gpu": _gpu(budget),
        "trainer": {"name": budget.trainer, "facts": [_fact(*each) for each in budget.facts]},
        "settings": budget.settings,
        "per_gpu": {
            **{f"{name}_bytes": _sum(budget, name) for name in get_args(Category)},
            "allocated_bytes": budget.allocated_bytes,
            "reserved_bytes": budget.reserved_bytes,
            "used_bytes": budget.used_bytes,
        },
        "host": {
            "memory_bytes": budget.host_bytes,
            "lines": [{"name": each.name, "bytes": each.size_bytes, "formula": each.formula} for each in budget.host],
        },
        "peak_phase": budget.peak_phase,
        "phases": [_phase(each) for each in budget.phases],
        "lines": [_line(each) for each in budget.lines],
        "verdict": budget.verdict,
        "shortfall_bytes": budget.shortfall_bytes,
        "reasons": list(budget.reasons),
        "remedies": [_remedy(budget, each) for each in budget.remedies],
        "warnings": list(budget.warnings),
    }
    best = budget.cheapest
    if best is not None:
        content["cheapest_remedy"] = _remedy(budget, best)
    if budget.limits is not None:
        content["limits"] = {
            "micro_batch": budget.limits.micro_batch,
            "sequence_tokens": budget.limits.sequence_tokens,
        }
    return content


def _gpu(budget: TrainingBudget) -> dict[str, object]:
    gpu: dict[str, object] = {
        "name": budget.gpu_name,
        "count": budget.num_gpus,
        "memory_bytes": budget.gpu_memory_bytes,
    }
    if budget.price is not None:
        price = budget.price
        gpu["price_usd_per_hour"] = {"low": price.low, "high": price.high, "source": price.source}
    return gpu


def _fact(name: str, value: str, source: str) -> dict[str, object]:
    return {"name": name, "value": value, "source": source}


def _sum(budget: TrainingBudget, category: Category) -> int:
    return sum(line.size_bytes for line in budget.lines if line.category == category)


def _phase(phase: Phase) -> dict[str, object]:
    return {
        "name": phase.name,
        "peak_bytes": phase.peak_bytes,
        "after_bytes": phase.after_bytes,
        "categories": {f"{category}_bytes": size for category, size in phase.category_bytes().items()},
        "held": [{"category": each.category, "name": each.name, "bytes": each.size_bytes} for each in phase.held],
        "note": phase.note,
    }


def _line(line: TrainingLine) -> dict[str, object]:
    return {
        "name": line.name,
        "category": line.category,
        "bytes": line.size_bytes,
        "low_bytes": line.low_bytes,
        "high_bytes": line.high_bytes,
        "provenance": line.provenance,
        "formula": line.formula,
        "source": line.source,
    }


def _remedy(budget: TrainingBudget, remedy: TrainingRemedy) -> dict[str, object]:
    return {
        "change": remedy.change.replace("{gpu}", budget.gpu_name),
        "saves_bytes": remedy.saves_bytes,
        "verdict": remedy.verdict,
        "peak_phase": remedy.phase,
        "time_percent": remedy.time_percent,
        "note": remedy.note,
    }
