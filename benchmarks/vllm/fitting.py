"""What the two fitting scripts share: weighted records, and constants written back into the YAML file in place."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from records import Question, question, read_records

from memplan.errors import MemplanError

CONSTANTS = Path(__file__).resolve().parents[2] / "memplan" / "catalog" / "engines" / "vllm_fitted.yaml"


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A question and how much its record counts: runs of one source are not independent of each other."""

    question: Question
    weight: float


def weighted_questions(files: Iterable[Path], configs: Path) -> list[Weighted]:
    """Read the records that memplan answers; n records of one source count as the square root of n."""
    asked: list[tuple[str, Question]] = []
    for file in files:
        for record in read_records(file):
            try:
                one = question(record, configs)
                one.ask()
            except MemplanError as error:
                print(f"{record['id']}: left out: {error.message}")
                continue
            asked.append((origin(record), one))
    counts = Counter(origin for origin, _ in asked)
    return [Weighted(question=one, weight=counts[origin] ** -0.5) for origin, one in asked]


def origin(record: dict[str, object]) -> str:
    """The collection that a record comes from: a repository, without the run's own name; a report is its own."""
    source = str(record.get("source") or record["id"])
    return source.split()[0]


def quantile(values: Sequence[tuple[float, float]], share: float) -> float:
    """The weighted quantile of (value, weight) pairs."""
    ordered = sorted(values)
    total, seen = sum(weight for _, weight in ordered), 0.0
    for value, weight in ordered:
        seen += weight
        if seen >= share * total:
            return value
    return ordered[-1][0]


def write_constant(name: str, value: str, path: Path = CONSTANTS) -> None:
    """Replace one value in the YAML file, comments and order kept."""
    text = path.read_text(encoding="utf-8")
    changed, count = re.subn(rf"(?m)^( *{re.escape(name)}: )(\[[^\]]*\]|[-0-9.]+)", rf"\g<1>{value}", text)
    if count != 1:
        raise SystemExit(f"{path.name}: {name} stands there {count} times")
    path.write_text(changed, encoding="utf-8")
