"""Fit the widths of llama.cpp's intervals: the share of a line within which nine of ten recorded starts lie.

    python benchmarks/llama_cpp/fit.py RECORDS.jsonl --configs DIR

Prints the lines of `memplan/catalog/engines/llama.cpp.yaml` whose names end in `_spread` and `_spread_*`, one apart
that is assumed. Nothing else of the engine is fitted: sizes follow from its rules.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from score import row_of

_PART = 0.9


def quantile(errors: Iterable[float]) -> float:
    """The 90 % quantile of sizes of errors, as a new record of the same kind meets it (one more in the count)."""
    sizes = sorted(abs(error) for error in errors)
    return sizes[min(len(sizes), math.ceil(_PART * (len(sizes) + 1))) - 1] if sizes else 0.0


def rounded_up(share: float) -> float:
    """To two digits, upwards."""
    digits = 1 - math.floor(math.log10(share)) if share > 0 else 0
    return math.ceil(share * 10**digits) / 10**digits


def widths(rows: list[Mapping[str, object]]) -> dict[str, float]:
    """The widths that the rows ask for."""
    named = [row for row in rows if "weights" in row and row.get("weights_from") == "mix"]
    handmade = [row for row in rows if "weights" in row and row.get("weights_from") == "size"]
    mainline = [row for row in rows if "compute" in row and row["engine"] == "llama.cpp"]
    fork = [row for row in rows if "compute" in row and row["engine"] != "llama.cpp"]
    return {
        "weights_spread": quantile(off(row, "weights") for row in named),
        "weights_spread_handmade": quantile(off(row, "weights") for row in handmade),
        "compute_spread": quantile(off(row, "compute") for row in mainline),
        "compute_spread_fork": quantile(off(row, "compute") for row in fork),
    }


def off(row: Mapping[str, object], term: str) -> float:
    """How far the truth is from a prediction, as a share of the prediction: what an interval is a share of, too."""
    error = float(str(row[term]))
    return error / (1 + error)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--configs", type=Path, required=True)
    arguments = parser.parse_args()
    lines = arguments.records.read_text().splitlines()
    rows = [row_of(json.loads(line), arguments.configs) for line in lines if line.strip()]
    for name, share in widths(rows).items():
        print(f"{name}: {rounded_up(share):g}")


if __name__ == "__main__":
    main()
