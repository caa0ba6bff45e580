"""Score training budgets on the peaks that real runs printed.

    python benchmarks/training/score.py RECORDS.jsonl --configs DIR [--oom RECORDS.jsonl] [--only TEXT] [--rows]
        [--json]

Two groups: `exact` rows are complete, of known sequence length, not suspect, and PyTorch's own peak, allocated or
reserved; `complete` are all rows that lack nothing (those that print what a driver or a tool showed are put beside the
reserved peak). Of `--oom`, runs that ran out of memory, verdicts are counted, as of those that ran. Errors are signed,
(predicted - real) / real; medians and percentiles weight every source of records equally.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from lengths import reserved_over_samples, varies
from records import Question, Record, question, read_records

from memplan.budget.training.reserved import reserved_bytes
from memplan.budget.training.step import Step
from memplan.catalog.gpus import find_gpu
from memplan.domain.gpu import GpuSpec
from memplan.engines.training.measure import measure
from memplan.errors import MemplanError
from memplan.records import replace
from memplan.units import GIB


@dataclass(frozen=True)
class Row:
    """One record with its prediction."""

    record: Record
    predicted_gib: float

    @property
    def source(self) -> str:
        return str(self.record["source"]).split()[0]

    @property
    def error(self) -> float:
        return self.predicted_gib / self.record["per_gpu_gib"] - 1

    @property
    def is_exact(self) -> bool:
        record = self.record
        return bool(record["seq_exact"] and record["metric"] in ("max_allocated", "max_reserved"))


def predict(asked: Question) -> tuple[float, float]:
    """The peak of a step in GiB: allocated, reserved."""
    step = Step(asked.spec, asked.training)
    allocated = max(phase.peak_bytes for phase in step.run())
    if varies(asked.record):
        return allocated / GIB, reserved_over_samples(asked, card(asked.record).memory_bytes) / GIB
    return allocated / GIB, reserved_bytes(step) / GIB


def score(records: list[Record], configs: Path) -> tuple[list[Row], list[tuple[str, str]]]:
    """Every record with its prediction, and those without one, with the reason."""
    rows: list[Row] = []
    unanswered: list[tuple[str, str]] = []
    for record in records:
        try:
            allocated, reserved = predict(question(record, configs))
        except MemplanError as error:
            unanswered.append((record["id"], str(error)))
            continue
        rows.append(Row(record, allocated if record["metric"] == "max_allocated" else reserved))
    return rows, unanswered


def quantile(rows: list[Row], share: float) -> float:
    """A quantile of the absolute errors, every source with the same weight."""
    counts = Counter(row.source for row in rows)
    ordered = sorted((abs(row.error), 1 / counts[row.source]) for row in rows)
    reached = 0.0
    for error, weight in ordered:
        reached += weight / len(counts)
        if reached >= share - 1e-9:
            return error
    return ordered[-1][0] if ordered else 0.0


def summary(rows: list[Row]) -> dict[str, object]:
    """Medians and percentiles of a group, and of each of its sources."""
    sources: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        sources[row.source].append(abs(row.error))
    return {
        "rows": len(rows),
        "median": quantile(rows, 0.5),
        "p90": quantile(rows, 0.9),
        "unweighted_median": median(abs(row.error) for row in rows) if rows else 0.0,
        "sources": {
            name: {"rows": len(found), "median": median(found), "worst": max(found)}
            for name, found in sorted(sources.items())
        },
    }


def verdicts(records: Path, configs: Path) -> tuple[Counter[str], dict[str, list[str]]]:
    """How often each verdict is given to complete records on their own cards, and which records have it."""
    counts: Counter[str] = Counter()
    which: dict[str, list[str]] = defaultdict(list)
    for record in read_records(records):
        if not record["complete"] or not record["gpu_capacity_gib"]:
            continue
        try:
            asked = question(record, configs)
        except MemplanError:
            continue
        verdict = measure(asked.spec, asked.training, card(record), None).verdict
        counts[verdict] += 1
        which[verdict].append(record["id"])
    return counts, which


def card(record: Record) -> GpuSpec:
    """The record's card, by its name or else by its size: a driver shows about a percent less than is sold."""
    try:
        return find_gpu(str(record["gpu"]).lower().replace("-80gb", "-80g").replace("-40gb", "-40g"))
    except MemplanError:
        size = round(record["gpu_capacity_gib"] * GIB * 0.99)
        return replace(find_gpu("a100-80g"), name="unknown", memory_bytes=size)


def print_rows(rows: list[Row]) -> None:
    """Every row, by source and error."""
    for row in sorted(rows, key=lambda each: (each.source, each.error)):
        record = row.record
        words = (
            f"{record['id']} {'exact' if row.is_exact else '     '} {row.source[:22]:22} {record['model'][-22:]:22}",
            f"{record['method']:5} n{record['num_gpus']:<2} {record['sharding'] or '':5}",
            f"b{record['micro_batch_size']} s{record['seq_len']} {record['activation_checkpointing']}",
            f"{(record['cross_entropy'] or '')[:12]:12} {record['metric'][:12]}",
            f"real {record['per_gpu_gib']:.2f} predicted {row.predicted_gib:.2f} {row.error:+.1%}",
        )
        print(" ".join(words))


def print_summary(name: str, found: dict[str, object]) -> None:
    print(f"{name}: {found['rows']} rows, median {found['median']:.2%}, p90 {found['p90']:.2%}")
    for source, each in found["sources"].items():  # type: ignore[attr-defined]
        print(f"   {source:42} {each['rows']:4} median {each['median']:.1%} worst {each['worst']:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--oom", type=Path)
    parser.add_argument("--only", default="", help="sources that contain this")
    parser.add_argument("--rows", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    records = [
        record
        for record in read_records(arguments.records)
        if record["complete"] and record["quality"] != "suspect" and arguments.only in record["source"]
    ]
    rows, unanswered = score(records, arguments.configs)
    found = {"exact": summary([row for row in rows if row.is_exact]), "complete": summary(rows)}
    told: dict[str, Counter[str]] = {}
    which: dict[str, list[str]] = {}
    if arguments.oom:
        for name, records_of, wrong in (("ran out", arguments.oom, "fits"), ("ran", arguments.records, "does_not_fit")):
            told[name], by_verdict = verdicts(records_of, arguments.configs)
            which[name] = by_verdict[wrong]
    if arguments.json:
        print(json.dumps({**found, "verdicts": told, "wrong": which, "unanswered": unanswered}, indent=1))
        return
    if arguments.rows:
        print_rows(rows)
    for name, each in found.items():
        print_summary(name, each)
    for name, counts in told.items():
        print(f"{name}: {dict(counts)}; wrong: {', '.join(which[name]) or 'none'}")
    for each in unanswered:
        print("unanswered:", *each)


if __name__ == "__main__":
    main()
