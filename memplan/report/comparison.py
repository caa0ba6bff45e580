"""Several budgets as one table of plain texts: its columns, what all budgets share, and the order of an answer
without a GPU.

Every format draws the same table: text, Markdown and HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from memplan.domain.budget import MemoryBudget
from memplan.domain.holders import Holders
from memplan.domain.remedies import cheapest_remedy, flags_to_type
from memplan.report import words
from memplan.units import GIB, format_gib

TEXT_COLUMNS = frozenset({"model", "GPU", "weights in", "engine", "asked for", "fits"})
"""The columns that are set to the left; all others hold numbers. Sizes are GiB on each GPU."""

FULL = ("at once", "tokens", "weights", "activation", "graphs", "other", "KV cache", "total", "of")
SHORT = ("at once", "tokens", "weights", "running", "KV cache", "of")
SHORTEST = ("at once", "tokens", "of")
_ANSWER = ("fits", "short by", "$/hour")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:,.2f}"


def _running_bytes(budget: MemoryBudget) -> int:
    return budget.used_bytes - budget.group_bytes("weights") - budget.group_bytes("kv_cache")


def _asked(budget: MemoryBudget) -> str:
    wanted = words.asked(budget)
    return f"{wanted[1]:,} x {wanted[0]:,}" if wanted else ""


def _at_once(budget: MemoryBudget) -> str:
    number = budget.kv.max_concurrency
    return "-" if number is None else f"{number:,.2f}" if number < 1000 else f"{number:,.0f}"


def _tokens(budget: MemoryBudget) -> str:
    tokens = budget.kv.capacity_tokens
    return "-" if tokens is None else f"{tokens:,}"


_CELLS: Mapping[str, Callable[[MemoryBudget], str]] = {
    "model": lambda budget: budget.model_name,
    "GPU": words.gpus,
    "weights in": words.scheme,
    "engine": words.engine,
    "asked for": _asked,
    "weights": lambda budget: _gib(budget.group_bytes("weights")),
    "activation": lambda budget: _gib(budget.group_bytes("activation_peak")),
    "graphs": lambda budget: _gib(budget.group_bytes("cuda_graph")),
    "other": lambda budget: _gib(budget.group_bytes("non_torch") + budget.group_bytes("outside_budget")),
    "running": lambda budget: _gib(_running_bytes(budget)),
    "KV cache": lambda budget: _gib(budget.group_bytes("kv_cache")),
    "total": lambda budget: _gib(budget.used_bytes),
    "of": lambda budget: _gib(budget.gpu_memory_bytes),
    "tokens": _tokens,
    "at once": _at_once,
    "fits": lambda budget: words.SHORT_VERDICTS[budget.verdict],
    "short by": lambda budget: _gib(budget.shortfall_bytes) if budget.shortfall_bytes else "-",
    "$/hour": lambda budget: words.price(budget) or "-",
}
_SHARED: Mapping[str, Callable[[MemoryBudget], str]] = {
    "model": words.title,
    "weights in": lambda budget: f"weights in {words.scheme(budget)}" if words.scheme(budget) else "",
    "engine": words.engine,
    "asked for": lambda budget: words.requests(wanted[1], wanted[0]) if (wanted := words.asked(budget)) else "",
}
EXPLANATIONS: Mapping[str, str] = {
    "asked for": "requests x tokens of each",
    "other": "outside torch and outside the budget",
    "running": "activation peak, CUDA graphs, outside torch and outside the budget",
    "tokens": "what the KV cache holds in all",
    "at once": "requests of the asked length that have room",
    "$/hour": "US dollars per hour of all GPUs of a row",
}


def shared_facts(budgets: Sequence[MemoryBudget]) -> list[str]:
    """What is the same for all budgets, the model first."""
    return [
        say(budgets[0])
        for name, say in _SHARED.items()
        if say(budgets[0]) and len({_CELLS[name](budget) for budget in budgets}) == 1
    ]


def matrix(budgets: Sequence[MemoryBudget], columns: Iterable[str]) -> list[list[str]]:
    """Return the head and one row per budget; what all budgets share has no column, nor has what none knows."""
    named = ["GPU", *(name for name in _SHARED if len({_CELLS[name](budget) for budget in budgets}) > 1)]
    answer = [name for name in _ANSWER if any(_CELLS[name](budget) != "-" for budget in budgets)]
    head = [*sorted(named, key=lambda name: name != "model"), *answer, *columns]
    return [head, *([_CELLS[name](budget) for name in head] for budget in budgets)]


def explained(head: Iterable[str]) -> str:
    """What the less plain columns of a table hold, as one sentence."""
    parts = [f"{name}: {EXPLANATIONS[name]}" for name in head if name in EXPLANATIONS]
    return "Sizes are GiB on each GPU. " + "".join(f"{part[:1].upper()}{part[1:]}. " for part in parts).strip()


def remedies(budgets: Sequence[MemoryBudget]) -> list[tuple[str, str]]:
    """For every budget that does not fit: which, and the cheapest change that mends it."""
    found = []
    for budget in budgets:
        best = cheapest_remedy(budget)
        if best is not None:
            about = f", {best.note}" if best.note else ""
            change = f"{flags_to_type(best.change)} (returns {format_gib(best.saves_bytes)}{about})"
            found.append((words.label(budget), change))
        elif budget.verdict == "does_not_fit" and budget.remedies:
            found.append((words.label(budget), "no single change"))
    return found


def warnings(budgets: Sequence[MemoryBudget]) -> list[str]:
    """The warnings of all budgets, each once; one that is for one or two of them says for which."""
    said: dict[str, list[MemoryBudget]] = {}
    for budget in budgets:
        for warning in budget.warnings:
            said.setdefault(warning, []).append(budget)
    return [
        text
        if len(whose) == len(budgets) or len(whose) > 2
        else f"{' and '.join(words.label(budget) for budget in whose)}: {text}"
        for text, whose in said.items()
    ]


def needs(holders: Holders) -> list[tuple[str, str]]:
    """What a model needs before anyone has picked a GPU, as names and values."""
    asked = words.requests(holders.concurrency, holders.context_tokens)
    total = holders.weights_bytes + holders.running_bytes + holders.kv_bytes
    pairs = [("weights", format_gib(holders.weights_bytes))]
    if holders.kv_bytes:
        cost = words.token_bytes(holders.kv_bytes_per_token)
        pairs.append(("KV cache", f"{format_gib(holders.kv_bytes)} for {asked}, {cost} a token"))
    pairs.append(("to run", f"{format_gib(holders.running_bytes)} on one GPU, more in all on several"))
    return [*pairs, ("together", f"{format_gib(total)} on one GPU")]


def by_price(budgets: Iterable[MemoryBudget]) -> list[MemoryBudget]:
    """Sort by the lowest price of all GPUs of a budget; those without a price follow by memory."""

    def key(budget: MemoryBudget) -> tuple[bool, float, int, str]:
        dollars = budget.price.low * budget.num_gpus if budget.price else 0.0
        return budget.price is None, dollars, budget.num_gpus * budget.gpu_memory_bytes, budget.gpu_name

    return sorted(budgets, key=key)


def by_memory(budgets: Iterable[MemoryBudget]) -> list[MemoryBudget]:
    """Sort by the memory of all GPUs of a budget, the least first."""
    return sorted(
        budgets, key=lambda budget: (budget.num_gpus * budget.gpu_memory_bytes, budget.num_gpus, budget.gpu_name)
    )
