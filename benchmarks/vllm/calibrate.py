"""Fit the intervals of the vLLM model on recorded start-ups.

    python benchmarks/vllm/calibrate.py RECORDS.jsonl ... --configs DIR [--write]

For every class of terms: the weighted 4 % and 96 % quantiles, which are 90 % and a margin for runs not seen, of
(real - predicted) over predicted; for the cache over the card's memory. Run after fit.py. A class of fewer than eight
records keeps what the file says. Runs off by more than half of the term, or by 15 % of the card, had a setting that
they did not print, weights off by more than 6 % are of another checkpoint: they are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fitting import quantile, weighted_questions, write_constant
from records import real_kv_gib

from memplan.catalog.rules import load_rules
from memplan.domain.budget import MemoryBudget
from memplan.engines.vllm.fitted import load_fitted
from memplan.engines.vllm.intervals import activation_class, cache_class
from memplan.units import GIB

_LEAST_RECORDS = 8
_MOST_SHARE, _MOST_WEIGHTS_SHARE, _MOST_CARD_SHARE = 0.5, 0.06, 0.15
_LOW, _HIGH = 0.04, 0.96

Residuals = dict[str, list[tuple[float, float]]]


def residuals(files: list[Path], configs: Path) -> Residuals:
    """(residual, weight) of every class."""
    found: Residuals = defaultdict(list)
    for each in weighted_questions(files, configs):
        asked, budget = each.question, each.question.ask()
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
                found[name].append((real / predicted - 1, each.weight))
        real = real_kv_gib(asked.record, budget) if asked.record.get("scored") == "kv" else None
        if real and real > 0:
            card = budget.gpu_memory_bytes / GIB
            share = (real - budget.group_bytes("kv_cache") / GIB) / card
            if abs(share) < _MOST_CARD_SHARE:
                found[cache_class(asked.settings, generation_of(budget), release)].append((share, each.weight))
    return found


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
        low, high = min(0.0, quantile(values, _LOW)), max(0.0, quantile(values, _HIGH))
        kept = len(values) < _LEAST_RECORDS
        print(f"{name:28} {len(values):4} records  {low:+.4f} {high:+.4f}  now {now[name]}{'  kept' if kept else ''}")
        if options.write and not kept:
            write_constant(name, f"[{low:.4f}, {high:.4f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
