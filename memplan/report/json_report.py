"""Budgets as JSON, in the contract that scripts rely on (docs/schemas/memplan.estimate.json).

Keys of the contract are always there. `context_map`, `kv_waste`, `cheapest_remedy`, the price and the scheme are there
when they are known, and an engine's own extras follow at the top level; they never take the place of a key of ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from memplan.domain.budget import ContextMap, Group, KvCapacity, KvWaste, Line, MemoryBudget, Remedy
from memplan.domain.holders import Holders
from memplan.domain.remedies import cheapest_remedy

_GROUPS: tuple[Group, ...] = ("weights", "activation_peak", "cuda_graph", "non_torch", "kv_cache", "outside_budget")


def estimate_json(budgets: Sequence[MemoryBudget]) -> str:
    """Return one object for one budget, a list under a schema of its own for several."""
    return dump(budget_object(budgets[0]) if len(budgets) == 1 else _estimates(budgets))


def holders_json(holders: Holders) -> str:
    """Return what a model needs, and one estimate per GPU type that holds it, under the schema of several estimates."""
    needs = {
        "model": holders.model_name,
        "parameters": holders.parameters,
        "weights_bytes": holders.weights_bytes,
        "running_bytes": holders.running_bytes,
        "kv_cache_bytes": holders.kv_bytes,
        "kv_bytes_per_token": holders.kv_bytes_per_token,
        "context_tokens": holders.context_tokens,
        "concurrency": holders.concurrency,
    }
    return dump({**_estimates(holders.budgets), "needs": needs, "left_out": list(holders.left_out)})


def budget_object(budget: MemoryBudget) -> dict[str, object]:
    """Return a budget as plain values; all sizes are whole bytes, per GPU of the fullest rank."""
    per_gpu = {f"{group}_bytes": budget.group_bytes(group) for group in _GROUPS}
    content: dict[str, object] = {
        "schema": "memplan.estimate/1",
        "model": _model(budget),
        "gpu": _gpu(budget),
        "engine": {"name": budget.engine_name, "version": budget.engine_version},
        "settings": budget.settings,
        "per_gpu": {**per_gpu, "used_bytes": budget.used_bytes},
        "host": {"memory_bytes": budget.host_bytes},
        "lines": [_line(line) for line in budget.lines],
        "kv_cache": _kv_cache(budget.kv),
        "verdict": budget.verdict,
        "shortfall_bytes": budget.shortfall_bytes,
        "reasons": list(budget.reasons),
        "remedies": [_remedy(remedy) for remedy in budget.remedies],
        "warnings": list(budget.warnings),
    }
    best = cheapest_remedy(budget)
    if best is not None:
        content["cheapest_remedy"] = _remedy(best)
    if budget.context_map is not None:
        content["context_map"] = _context_map(budget.context_map)
    if budget.kv_waste is not None:
        content["kv_waste"] = _kv_waste(budget.kv_waste)
    return {**content, **{name: value for name, value in budget.extra.items() if name not in content}}


def _estimates(budgets: Sequence[MemoryBudget]) -> dict[str, object]:
    return {"schema": "memplan.estimates/1", "estimates": [budget_object(budget) for budget in budgets]}


def dump(content: Mapping[str, object]) -> str:
    """Return an object as the JSON text that every command writes."""
    return json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"


def _plain(value: object) -> object:
    """A value as JSON has it: a number that is not finite becomes null, what JSON does not know becomes its text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _model(budget: MemoryBudget) -> dict[str, object]:
    model: dict[str, object] = {
        "name": budget.model_name,
        "architecture": budget.architecture,
        "parameters": budget.parameters,
        "active_parameters": budget.active_parameters,
        "weights_source": budget.weights_source,
    }
    return {**model, "weights_scheme": budget.weights_scheme} if budget.weights_scheme else model


def _gpu(budget: MemoryBudget) -> dict[str, object]:
    gpu: dict[str, object] = {
        "name": budget.gpu_name,
        "count": budget.num_gpus,
        "memory_bytes": budget.gpu_memory_bytes,
    }
    if budget.price is not None:
        price = budget.price
        gpu["price_usd_per_hour"] = {"low": price.low, "high": price.high, "source": price.source}
    return gpu


def _line(line: Line) -> dict[str, object]:
    return {
        "name": line.name,
        "group": line.group,
        "bytes": line.size_bytes,
        "low_bytes": line.low_bytes,
        "high_bytes": line.high_bytes,
        "provenance": line.provenance,
        "formula": line.formula,
        "source": line.source,
    }


def _kv_cache(kv: KvCapacity) -> dict[str, object]:
    return {
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
    }


def _remedy(remedy: Remedy) -> dict[str, object]:
    return {
        "change": remedy.change,
        "saves_bytes": remedy.saves_bytes,
        "verdict": remedy.verdict,
        "note": remedy.note,
    }


def _context_map(found: ContextMap) -> dict[str, object]:
    return {"context_tokens": list(found.context_tokens), "max_concurrency": list(found.max_concurrency)}


def _kv_waste(found: KvWaste) -> dict[str, object]:
    return {
        "mean_tokens": found.mean_tokens,
        "context_tokens": found.context_tokens,
        "contiguous_wasted_bytes": found.contiguous_wasted_bytes,
        "paged_wasted_bytes": found.paged_wasted_bytes,
        "contiguous_requests": found.contiguous_requests,
        "paged_requests": found.paged_requests,
    }
