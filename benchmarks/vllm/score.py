"""Score `memplan estimate --engine vllm` against what real vLLM start-ups printed.

    python benchmarks/vllm/score.py RECORDS.jsonl --configs DIR [--json]

Errors are signed, predicted minus real. The KV cache is compared relative to the real one and as a share of the GPU's
memory. `coverage` is the share of records whose real value lies in the 90 % interval. A record that cannot be answered
is counted, never dropped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from records import Record, question, read_records, real_kv_gib

from memplan.domain.budget import Group, MemoryBudget
from memplan.errors import MemplanError
from memplan.units import GIB

TERMS: tuple[tuple[Group, str], ...] = (
    ("weights", "weights_gib"),
    ("activation_peak", "activation_peak_gib"),
    ("non_torch", "non_torch_gib"),
    ("cuda_graph", "cuda_graph_gib"),
)


def score(record: Record, configs: Path) -> dict[str, Any]:
    """Return the errors of one record, and whether each real value lay in its interval."""
    row: dict[str, Any] = {"id": record["id"], "model": record["model"], "version": record.get("version")}
    try:
        budget = question(record, configs).ask()
    except MemplanError as error:
        return {**row, "problem": f"{error.message} ({error.hint})"}
    row |= {"settings": budget.settings, "errors": {}, "inside": {}}
    for group, key in TERMS:
        if record["truth"].get(key) is not None:
            real = record["truth"][key]
            row["errors"][key] = budget.group_bytes(group) / GIB - real
            row["inside"][key] = _inside(budget, group, real * GIB)
    if record["truth"].get("weights_gib"):
        row["errors"]["weights_rel"] = row["errors"]["weights_gib"] / record["truth"]["weights_gib"]
    real = real_kv_gib(record, budget) if record.get("scored") == "kv" else None
    if real and real > 0:
        predicted = budget.group_bytes("kv_cache") / GIB
        row["errors"]["kv_rel"] = (predicted - real) / real
        row["errors"]["kv_share"] = (predicted - real) / (budget.gpu_memory_bytes / GIB)
        row["inside"]["kv_gib"] = _inside(budget, "kv_cache", real * GIB)
    return row


def _inside(budget: MemoryBudget, group: Group, real_bytes: float) -> bool:
    """Whether the real value lies within the interval, allowing for the two digits that were printed."""
    lines = [line for line in budget.lines if line.group == group]
    slack = 0.006 * GIB
    low, high = sum(line.low_bytes for line in lines), sum(line.high_bytes for line in lines)
    return low - slack <= real_bytes <= high + slack


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians, 90th percentiles and interval coverage over all rows."""
    result: dict[str, Any] = {"records": len(rows), "unanswered": sum("problem" in row for row in rows)}
    for key in ("kv_rel", "kv_share", "weights_rel", "activation_peak_gib", "non_torch_gib", "cuda_graph_gib"):
        values = sorted(abs(row["errors"][key]) for row in rows if key in row.get("errors", {}))
        if values:
            result[key] = {
                "n": len(values),
                "median": round(statistics.median(values), 4),
                "p90": round(values[min(len(values) - 1, int(0.9 * len(values)))], 4),
                "max": round(values[-1], 4),
            }
    for key in ("weights_gib", "activation_peak_gib", "kv_gib"):
        inside = [row["inside"][key] for row in rows if key in row.get("inside", {})]
        if inside:
            result[f"coverage_{key}"] = {"n": len(inside), "share": round(sum(inside) / len(inside), 3)}
    return result


def main() -> int:
    """Score a file of records and print the table or the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    records = [r for r in read_records(options.records) if not options.only or r["id"] in options.only]
    rows = [score(record, options.configs) for record in records]
    if options.json:
        print(json.dumps({"summary": summary(rows), "rows": rows}))
        return 0
    for row in sorted(rows, key=lambda row: -abs(row.get("errors", {}).get("kv_share", 0))):
        errors = " ".join(f"{key}={value:+.3f}" for key, value in row.get("errors", {}).items())
        outside = ",".join(key for key, inside in row.get("inside", {}).items() if not inside)
        print(
            f"{row['id']:6} {row['model'][:44]:44} {row['version'] or '':8} {row.get('problem') or errors}  {outside}"
        )
    print(json.dumps(summary(rows), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
