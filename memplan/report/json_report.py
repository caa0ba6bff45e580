"""Budgets as JSON, in the contract that scripts rely on (docs/schemas/memplan.estimate.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence

from memplan.domain.budget import Group, MemoryBudget

_GROUPS: tuple[Group, ...] = ("weights", "activation_peak", "cuda_graph", "non_torch", "kv_cache", "outside_budget")


def estimate_json(budgets: Sequence[MemoryBudget]) -> str:
    """Return one object for one budget, a list under a schema of its own for several."""
    if len(budgets) == 1:
        content: dict[str, object] = budget_object(budgets[0])
    else:
        content = {"schema": "memplan.estimates/1", "estimates": [budget_object(budget) for budget in budgets]}
    return json.dumps(content, indent=2) + "\n"


def budget_object(budget: MemoryBudget) -> dict[str, object]:
    """Return a budget as plain values; all sizes are whole bytes, per GPU of the fullest rank."""
    per_gpu = {f"{group}_bytes": budget.group_bytes(group) for group in _GROUPS}
    kv = budget.kv
    return {
        "schema": "memplan.estimate/1",
        "model": {
            "name": budget.model_name,
            "architecture": budget.architecture,
            "parameters": budget.parameters,
            "active_parameters": budget.active_parameters,
            "weights_source": budget.weights_source,
        },
        "gpu": {"name": budget.gpu_name, "count": budget.num_gpus, "memory_bytes": budget.gpu_memory_bytes},
        "engine": {"name": budget.engine_name, "version": budget.engine_version},
        "settings": budget.settings,
        "per_gpu": {**per_gpu, "used_bytes": budget.used_bytes},
        "host": {"memory_bytes": budget.host_bytes},
        "lines": [
            {
                "name": line.name,
                "group": line.group,
                "bytes": line.size_bytes,
                "low_bytes": line.low_bytes,
                "high_bytes": line.high_bytes,
                "provenance": line.provenance,
                "formula": line.formula,
                "source": line.source,
            }
            for line in budget.lines
        ],
        "kv_cache": {
            "bytes_per_token": kv.bytes_per_token,
            "capacity_tokens": kv.capacity_tokens,
            "low_tokens": kv.low_tokens,
            "high_tokens": kv.high_tokens,
            "blocks": kv.blocks,
            "block_size": kv.block_size,
            "max_concurrency": kv.max_concurrency,
            "max_context_tokens": kv.max_context_tokens,
            "needed_bytes": kv.needed_bytes,
            "needed_tokens": kv.needed_tokens,
        },
        "verdict": budget.verdict,
        "shortfall_bytes": budget.shortfall_bytes,
        "reasons": list(budget.reasons),
        "remedies": [
            {"change": remedy.change, "saves_bytes": remedy.saves_bytes, "verdict": remedy.verdict, "note": remedy.note}
            for remedy in budget.remedies
        ],
        "warnings": list(budget.warnings),
        **budget.extra,
    }
