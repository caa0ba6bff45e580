"""Score the speed model on published measurements.

    python benchmarks/serving_speed/score.py [--json] [--rows] [--table FILE] [--write-page]

Errors are signed, (predicted - measured) / measured; the summary has the median and the 90 % quantile of their sizes,
per phase and per engine. `factor` is the same quantile as a ratio: 1.5 means that nine of ten predictions are within
half as much again of what was measured, either way.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measurements import PUBLISHED, read_measurements
from speed_errors import IN_PAGE, PAGE, page_table, row_of, summary_of

from memplan.catalog.tables import load_table, read_yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path, nargs="?", default=PUBLISHED)
    parser.add_argument("--table", type=Path, help="efficiencies other than the catalogue's")
    parser.add_argument("--rows", action="store_true", help="print every row, the worst first")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write-page", action="store_true", help="write the errors into docs/speed-model.md")
    arguments = parser.parse_args()
    table = (
        read_yaml(arguments.table.read_text(encoding="utf-8"), arguments.table.name)
        if arguments.table
        else load_table(Path("efficiency.yaml"))
    )
    rows = [row_of(measurement, table) for measurement in read_measurements(arguments.records)]
    summary = summary_of(rows)
    if arguments.write_page:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(IN_PAGE.sub(lambda match: match[1] + page_table(summary) + match[2], page), encoding="utf-8")
    if arguments.json:
        print(json.dumps({"summary": summary, "rows": rows}))
        return
    if arguments.rows:
        for row in sorted(rows, key=lambda row: -abs(math.log1p(row["error"]))):
            print(text_of(row))
    print(f"{'phase':9} {'engine':13} {'rows':>4} {'median':>7} {'p90':>7} {'factor':>6} {'bias':>7}")
    for phase, found in summary["phases"].items():
        for engine, errors in (("all", found), *found["engines"].items()):
            print(f"{phase:9} {engine:13} {_numbers(errors)}")
    print(f"{'all':9} {'all':13} {_numbers(summary['all'])}")


def _numbers(errors: Mapping[str, Any]) -> str:
    if not errors["rows"]:
        return "   0"
    return (
        f"{errors['rows']:4} {100 * errors['median']:6.1f}% {100 * errors['p90']:6.1f}% {errors['factor']:6.2f} "
        f"{100 * errors['bias']:+6.1f}%"
    )


def text_of(row: Mapping[str, Any]) -> str:
    """One row on a line."""
    layout = f"tp{row['tensor']}" + (f"pp{row['pipeline']}" if row["pipeline"] > 1 else "")
    lengths = f"{row['prompt_tokens']}/{row['output_tokens']} x{row['concurrency']}"
    return (
        f"{row['id']} {row['phase']:8} {row['engine']:12} {row['model']:15} {row['quant']:12} {row['gpu']:13} "
        f"{layout:7} {lengths:16} {row['metric']:24} {row['measured']:>10} {row['predicted']:>10} "
        f"{100 * row['error']:+7.1f}%"
    )


if __name__ == "__main__":
    main()
