"""Which of the changes that mend a budget costs its user least, and what to type for it."""

from __future__ import annotations

from collections.abc import Mapping

from memplan.domain.budget import MemoryBudget, Remedy

# What a change takes from its user, the least first: slack, throughput, media, speed, length, quality, money.
_COST_BY_FLAG: Mapping[str, int] = {
    "--gpu-memory-utilization": 0,
    "--mem-fraction-static": 0,
    "--max-num-seqs": 1,
    "--max-num-batched-tokens": 1,
    "--chunked-prefill": 1,
    "--language-model-only": 2,
    "--limit-mm": 2,
    "--eager": 3,
    "--context": 4,
    "--kv-dtype": 5,
    "--quant": 6,
    "--cpu-offload": 7,
    "--tp": 8,
    "--pp": 8,
    "--dp": 8,
    "--ep": 8,
    "--gpu": 8,
}
_COST_OF_OTHERS = 7


def cheapest_remedy(budget: MemoryBudget) -> Remedy | None:
    """Return the change that mends a budget and costs its user least; None when it fits already, or none mends it.

    A change that leads to `fits` comes before any that leads to `tight`, which does not mend what is tight already.
    Among changes of one kind, such as tensor parallelism over 4 or over 8, the smallest that mends is the cheapest.
    """
    mended = {"fits": (), "tight": ("fits",), "does_not_fit": ("fits", "tight")}[budget.verdict]
    return min((remedy for remedy in budget.remedies if remedy.verdict in mended), key=_cost, default=None)


def flags_to_type(change: str) -> str:
    """Return a change as it is typed: `--max-num-seqs 1024 -> 256` is `--max-num-seqs 256`."""
    words: list[str] = []
    for word in change.split():
        if word == "->":
            del words[-1:]
        else:
            words.append(word)
    return " ".join(words)


def _cost(remedy: Remedy) -> tuple[bool, int, int, int]:
    flags = [word for word in remedy.change.split() if word.startswith("-") and word != "->"]
    costs = [_COST_BY_FLAG.get(flag, _COST_OF_OTHERS) for flag in flags] or [_COST_OF_OTHERS]
    return remedy.verdict == "tight", max(costs), sum(costs), remedy.saves_bytes
