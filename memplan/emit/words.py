"""The budget in words, for the comments of every format: what a value costs, and what it was checked for."""

from __future__ import annotations

from memplan import __version__
from memplan.domain.budget import Group, Line, MemoryBudget
from memplan.domain.emission import EmitSubject
from memplan.units import format_count, format_gib

_VERDICTS = {"fits": "it fits", "tight": "it is tight: it may or may not fit", "does_not_fit": "IT DOES NOT FIT"}


def header(subject: EmitSubject, start: str) -> tuple[str, ...]:
    """Return the paragraphs above a config: what starts it, what it was checked for, how it came about, how to make
    it again.
    """
    budget = subject.budget
    weights = f"{format_count(budget.parameters)} parameters, weights in {budget.weights_scheme or 'auto'}"
    return (
        f"{subject.checked_for}: {start}",
        f"{subject.spec_name}, {weights}, on {gpus(budget)}",
        f"Checked by memplan {__version__}: {verdict(budget)}.",
        f"Each GPU: {groups(budget)}.",
        *(f"NOTE: {change}." for change in subject.changes),
        f"Made by: {subject.command}",
    )


def gpus(budget: MemoryBudget) -> str:
    """The GPUs of a budget: `2 x l40s (44.40 GiB)`."""
    return f"{budget.num_gpus} x {budget.gpu_name} ({format_gib(budget.gpu_memory_bytes)})"


def verdict(budget: MemoryBudget) -> str:
    """What the budget was checked for, and what came out."""
    asked = requests(budget)
    held = cache_holds(budget)
    return f"{_VERDICTS[budget.verdict]}, for {asked}{'; ' + held if held else ''}"


def requests(budget: MemoryBudget) -> str:
    """The asked requests: `4 requests of 8,192 tokens`."""
    concurrency = budget.settings.get("concurrency", 1)
    count = concurrency if isinstance(concurrency, int) else 1
    tokens = budget.kv.needed_tokens // max(1, count)
    return f"{count:,} request{'s' if count != 1 else ''} of {tokens:,} tokens"


def cache_holds(budget: MemoryBudget) -> str:
    """What the cache has room for; empty for a model that caches nothing."""
    kv = budget.kv
    if kv.capacity_tokens is None:
        return ""
    words = f"the cache holds {kv.capacity_tokens:,} tokens"
    return f"{words}, {kv.max_concurrency:,.2f} such requests at once" if kv.max_concurrency else words


def groups(budget: MemoryBudget) -> str:
    """The groups of a budget in one line: `weights 14.99 GiB, activation peak 0.47 GiB, ...`."""
    names: tuple[tuple[Group, str], ...] = (
        ("weights", "weights"),
        ("activation_peak", "activation peak"),
        ("cuda_graph", "CUDA graphs"),
        ("non_torch", "outside torch"),
        ("kv_cache", "KV cache"),
        ("outside_budget", "outside the budget"),
    )
    parts = [f"{name} {format_gib(budget.group_bytes(group))}" for group, name in names if budget.group_bytes(group)]
    return f"{', '.join(parts)}; {format_gib(budget.used_bytes)} of {format_gib(budget.gpu_memory_bytes)}"


def group_words(budget: MemoryBudget, group: Group, name: str) -> str:
    """One group with its working: `CUDA graphs 0.68 GiB: 86 graphs, estimated and charged`."""
    lines = [line for line in budget.lines if line.group == group and line.size_bytes]
    size = f"{name} {format_gib(budget.group_bytes(group))}"
    return f"{size}: {_largest(lines).formula}" if lines else size


def _largest(lines: list[Line]) -> Line:
    return max(lines, key=lambda line: line.size_bytes)
