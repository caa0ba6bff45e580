"""Fit the widths of a training budget's intervals on the peaks that real runs printed.

    python benchmarks/training/intervals.py RECORDS.jsonl --configs DIR [--write]

Of the exact rows that print what was allocated (see score.py; what is reserved is a condition of its own): how far the
real peak lies from the predicted one, (real - predicted) / predicted, at 5 and 95 % of the rows, by the groups of
memplan/engines/training/fitted.py. A group of fewer than `LEAST` rows or of one source takes the widths of all rows
together, where those are wider. `--write` puts them in memplan/catalog/engines/training_fitted.yaml.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

from records import question, read_records
from score import Row, predict

from memplan.engines.training.fitted import group_of
from memplan.errors import MemplanError

TABLE = Path(__file__).resolve().parents[2] / "memplan" / "catalog" / "engines" / "training_fitted.yaml"
GROUPS = ("full_whole", "full_gathered", "adapters_whole", "adapters_gathered", "others")
LEAST = 12
NARROWEST = 0.02


def quantile(rows: list[tuple[str, float]], share: float) -> float:
    """A quantile of signed errors by source: the row that has so many of all rows below it."""
    ordered = sorted(error for _, error in rows)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def errors_by_group(records: Path, configs: Path) -> dict[str, list[tuple[str, float]]]:
    """Signed errors of the exact rows of each group, with the source of each."""
    found: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for record in read_records(records):
        row = Row(record, 0.0)
        if not record["complete"] or record["quality"] == "suspect" or not row.is_exact:
            continue
        if record["metric"] != "max_allocated":
            continue
        try:
            asked = question(record, configs)
            predicted, _ = predict(asked)
        except MemplanError:
            continue
        found[group_of(asked.training)].append((row.source, record["per_gpu_gib"] / predicted - 1))
    return found


def widths(found: dict[str, list[tuple[str, float]]]) -> dict[str, tuple[float, float, int]]:
    """Below and above for each group, with the number of its rows."""
    everything = [each for rows in found.values() for each in rows]
    wide = quantile(everything, 0.05), quantile(everything, 0.95)
    made = {}
    for group in GROUPS:
        rows = found.get(group, [])
        low, high = (quantile(rows, 0.05), quantile(rows, 0.95)) if rows else wide
        if len(rows) < LEAST or len({source for source, _ in rows}) < 2:
            low, high = min(low, wide[0]), max(high, wide[1])
        made[group] = (round(min(low, -NARROWEST), 3), round(max(high, NARROWEST), 3), len(rows))
    return made


def main() -> None:
    """Print the widths, and write them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    made = widths(errors_by_group(options.records, options.configs))
    for group, (low, high, rows) in made.items():
        print(f"{group:20} {low:+.3f} .. {high:+.3f}  ({rows} rows)")
    if options.write:
        text = TABLE.read_text(encoding="utf-8")
        for group, (low, high, _) in made.items():
            text = re.sub(rf"^  {group}: .*$", f"  {group}: [{low}, {high}]", text, flags=re.MULTILINE)
        TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
