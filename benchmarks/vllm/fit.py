"""Fit the constants of the vLLM model on recorded start-ups.

    python benchmarks/vllm/fit.py RECORDS.jsonl ... --configs DIR [--only NAME ...] [--start NAME=VALUE ...]
        [--rounds N] [--write]

One constant at a time is moved while that makes the whole smaller: the weighted sum of the errors of non-torch memory,
CUDA graphs and the KV cache, in GiB, the cache without what the weights are off by. An error counts linearly up to
1 GiB and not at all beyond it: such a run had a setting that it did not print, and no constant should follow it.
Constants that records tell apart badly have several valleys: --start says where to begin. Without --write the result is
only shown.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fitting import Weighted, weighted_questions, write_constant
from records import real_kv_gib

from memplan.domain.budget import MemoryBudget
from memplan.engines.vllm import engine
from memplan.engines.vllm.fitted import Fitted, load_fitted
from memplan.errors import MemplanError
from memplan.units import GIB

_STEPS = (0.3, -0.3, 0.1, -0.1, 0.03, -0.03)
_CLIP_GIB = 1.0
_NOT_FITTED = ("context_mib", "intervals", "non_torch_width_mib", "non_torch_ranks_width_mib")


def loss(questions: list[Weighted], fitted: Fitted) -> float:
    """The weighted sum of clipped errors in GiB."""
    engine.load_fitted = lambda: fitted  # type: ignore[assignment]
    return sum(each.weight * _error(each) for each in questions)


def _error(each: Weighted) -> float:
    try:
        budget = each.question.ask()
    except MemplanError:
        return _CLIP_GIB
    record, errors = each.question.record, []
    truth = record["truth"]
    if truth.get("non_torch_gib") is not None:
        errors.append(budget.group_bytes("non_torch") / GIB - truth["non_torch_gib"])
    if truth.get("cuda_graph_estimate_gib") is not None:
        errors.append(budget.extra["cuda_graph_estimate_bytes"] / GIB - truth["cuda_graph_estimate_gib"])
    if truth.get("cuda_graph_gib") is not None and _logs_growth(budget):
        errors.append(budget.group_bytes("cuda_graph") / GIB - truth["cuda_graph_gib"])
    real = real_kv_gib(record, budget) if record.get("scored") == "kv" else None
    if real and real > 0:
        weights = budget.group_bytes("weights") / GIB
        missed = weights - (truth.get("weights_gib") or weights)
        errors.append(budget.group_bytes("kv_cache") / GIB + missed - real)
    return sum(min(abs(error), _CLIP_GIB) for error in errors)


def _logs_growth(budget: MemoryBudget) -> bool:
    """Whether "Graph capturing took" is what graphs hold: V1 before 0.18 freed cached blocks meanwhile, and printed
    less, at times less than nothing.
    """
    newer = tuple(int(part) for part in budget.engine_version.split(".")[:2]) >= (0, 18)
    return newer or budget.settings["engine_generation"] == "v0"


def descend(questions: list[Weighted], fitted: Fitted, names: list[str], rounds: int) -> Fitted:
    """Move one constant at a time by shares of itself, while the loss falls."""
    best = loss(questions, fitted)
    print(f"loss {best:.3f} over {len(questions)} records")
    for turn in range(rounds):
        before = best
        for name in names:
            for step in _STEPS:
                tried = replace(fitted, **{name: round(getattr(fitted, name) * (1 + step), 3)})
                found = loss(questions, tried)
                if found < best - 1e-3:
                    print(f"{name}: {getattr(fitted, name)} -> {getattr(tried, name)}, loss {found:.3f}", flush=True)
                    fitted, best = tried, found
        if best > before - 0.01:
            print(f"settled after {turn + 1} rounds")
            break
    return fitted


def main() -> int:
    """Fit, show, and write when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--start", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    start = load_fitted()
    names = options.only or [name for name in Fitted.__annotations__ if name not in _NOT_FITTED]
    begin = replace(start, **{name: float(value) for name, value in (each.split("=") for each in options.start)})
    found = descend(weighted_questions(options.records, options.configs), begin, names, options.rounds)
    for name in names:
        if getattr(found, name) != getattr(start, name):
            if options.write:
                write_constant(name, f"{float(f'{getattr(found, name):.3g}'):g}")
            print(f"{name}: {getattr(start, name)} -> {getattr(found, name):.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
