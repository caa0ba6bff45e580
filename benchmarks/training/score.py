"""Score training budgets on the peaks that real runs printed.

    python benchmarks/training/score.py RECORDS.jsonl --configs DIR [--oom RECORDS.jsonl] [--only TEXT] [--rows]
        [--json]

Three groups: `exact` rows are complete, of known sequence length, not suspect, and PyTorch's own peak, allocated or
reserved; `complete` are all rows that lack nothing (those that print what a driver or a tool showed are put beside the
reserved peak); `oom` ran out of memory, and must not be said to fit. Errors are signed, (predicted - real) / real;
medians and percentiles weight every source of records equally.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from records import Question, Record, question, read_records

from memplan.budget.caching_allocator.settings import AllocatorSettings, parse_settings
from memplan.budget.caching_allocator.simulator import CachingAllocator
from memplan.budget.training.step import Step
from memplan.errors import MemplanError
from memplan.units import GIB

PLAIN: AllocatorSettings = parse_settings("")
# What a process holds outside of PyTorch: CUDA's context, and communicators where there are several ranks.
CONTEXT_GIB, COMMUNICATORS_GIB = 0.5, 1.0


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
    return allocated / GIB, reserved_bytes(step) / GIB


def reserved_bytes(step: Step) -> int:
    """What the caching allocator takes of the device for the allocations of a step."""
    allocator = CachingAllocator(PLAIN)
    live = {}
    for number in step.device.events():
        if number >= 0:
            block = step.device.blocks[number]
            live[number] = allocator.allocate(block.size_bytes, block.stream)
        else:
            allocator.free(live.pop(~number))
    return allocator.peak_reserved_bytes


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


def out_of_memory(records: list[Record], configs: Path) -> dict[str, object]:
    """Of the runs that ran out, those that are said to fit."""
    wrong: list[str] = []
    asked = 0
    for record in records:
        if not record["complete"] or not record["gpu_capacity_gib"]:
            continue
        try:
            _, reserved = predict(question(record, configs))
        except MemplanError:
            continue
        asked += 1
        outside = CONTEXT_GIB + (COMMUNICATORS_GIB if record["num_gpus"] > 1 else 0.0)
        if reserved + outside <= record["gpu_capacity_gib"]:
            wrong.append(f"{record['id']} {reserved:.1f}")
    return {"rows": asked, "false_fits": len(wrong), "which": wrong}


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
    oom = out_of_memory(read_records(arguments.oom), arguments.configs) if arguments.oom else None
    if arguments.json:
        print(json.dumps({**found, "oom": oom, "unanswered": unanswered}, indent=1))
        return
    if arguments.rows:
        print_rows(rows)
    for name, each in found.items():
        print_summary(name, each)
    if oom:
        print(f"out of memory: {oom['rows']} rows, {oom['false_fits']} said to fit: {', '.join(oom['which'])}")
    for each in unanswered:
        print("unanswered:", *each)


if __name__ == "__main__":
    main()
