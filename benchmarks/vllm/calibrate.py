"""Fit the intervals of the vLLM model on recorded start-ups.

    python benchmarks/vllm/calibrate.py RECORDS.jsonl ... --configs DIR [--write]

For every class of terms: weighted quantiles of (real - predicted) over predicted; for the cache over the card's memory.
They start at 4 % and 96 %, which are 90 % and a margin, and go outwards until the runs of a source fall inside the
quantiles of all other sources nine times in ten, or no run is left outside. Run after fit.py. A class of fewer than
eight records keeps what the file says. Runs off by more than half of the term, or by 15 % of the card, had a setting
that they did not print, weights off by more than 6 % are of another checkpoint, or in another order: they are left out,
and so are their caches.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fitting import origin, quantile, weighted_questions, write_constant
from records import Record, real_kv_gib

from memplan.catalog.rules import load_rules
from memplan.domain.budget import MemoryBudget
from memplan.engines.vllm.fitted import load_fitted
from memplan.engines.vllm.intervals import activation_class, cache_class
from memplan.units import GIB

_LEAST_RECORDS = 8
_MOST_SHARE, _MOST_WEIGHTS_SHARE, _MOST_CARD_SHARE = 0.5, 0.06, 0.15
_TAILS = (0.04, 0.03, 0.02, 0.01, 0.0)
_WANTED_SHARE = 0.9

# (residual, weight, source) of every run of a class.
Residual = tuple[float, float, str]
Residuals = dict[str, list[Residual]]


def residuals(files: list[Path], configs: Path) -> Residuals:
    """The residuals of every class."""
    found: Residuals = defaultdict(list)
    for each in weighted_questions(files, configs):
        asked, budget = each.question, each.question.ask()
        source = origin(asked.record)
        truth = asked.record["truth"]
        release = load_rules("vllm", asked.record.get("version")).release
        quantized = "weights_quantized" if asked.spec.quantization else "weights"
        names = {
            "weights": quantized,
            "activation_peak": activation_class(cause_of(budget), generation_of(budget), release),
            "cuda_graph": "cuda_graph",
        }
        for group, name in names.items():
            predicted = budget.group_bytes(group) / GIB  # type: ignore[arg-type]
            real = truth.get(f"{group}_gib")
            most = _MOST_WEIGHTS_SHARE if group == "weights" else _MOST_SHARE
            if real is not None and predicted > 0 and abs(real / predicted - 1) < most:
                found[name].append((real / predicted - 1, each.weight, source))
        real = real_kv_gib(asked.record, budget) if asked.record.get("scored") == "kv" else None
        if real and real > 0:
            card = budget.gpu_memory_bytes / GIB
            share = (real - budget.group_bytes("kv_cache") / GIB) / card
            if abs(share) < _MOST_CARD_SHARE and _is_same_checkpoint(truth, budget):
                found[cache_class(asked.settings, generation_of(budget), release)].append((share, each.weight, source))
    return found


def _is_same_checkpoint(truth: Record, budget: MemoryBudget) -> bool:
    """Whether the weights that a run printed, if it did, can be those that were asked for."""
    real = truth.get("weights_gib")
    return real is None or abs(real * GIB / budget.group_bytes("weights") - 1) < _MOST_WEIGHTS_SHARE


def interval(values: list[Residual]) -> tuple[float, float]:
    """The quantiles that hold for sources that they were not made from."""
    for tail in _TAILS:
        if _held_out_share(values, tail) >= _WANTED_SHARE:
            break
    return _between(values, tail)


def _held_out_share(values: list[Residual], tail: float) -> float:
    """The weighted share of runs inside the quantiles of all other sources."""
    inside = 0.0
    for source in {source for _, _, source in values}:
        others = [value for value in values if value[2] != source]
        low, high = _between(others, tail) if others else (0.0, 0.0)
        inside += sum(weight for residual, weight, own in values if own == source and low <= residual <= high)
    return inside / sum(weight for _, weight, _ in values)


def _between(values: list[Residual], tail: float) -> tuple[float, float]:
    pairs = [(residual, weight) for residual, weight, _ in values]
    return min(0.0, quantile(pairs, tail)), max(0.0, quantile(pairs, 1 - tail))


def cause_of(budget: MemoryBudget) -> str:
    """What set the activation peak, as its line says."""
    line = next(line for line in budget.lines if line.group == "activation_peak")
    return line.formula.rsplit("set by the ", 1)[1]


def generation_of(budget: MemoryBudget) -> str:
    """The engine that the budget is of, v0 or v1."""
    return str(budget.settings["engine_generation"])


def main() -> int:
    """Show the quantiles of every class, and write them when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    now = load_fitted().intervals
    found = residuals(options.records, options.configs)
    for name, values in sorted(found.items()):
        low, high = interval(values)
        kept = len(values) < _LEAST_RECORDS
        print(f"{name:28} {len(values):4} records  {low:+.4f} {high:+.4f}  now {now[name]}{'  kept' if kept else ''}")
        if options.write and not kept:
            write_constant(name, f"[{low:.4f}, {high:.4f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
