"""How far the speed model is from published measurements: rows, their summary, and the table of the page."""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measurements import PHASES, Measurement

RESULTS = Path(__file__).resolve().parents[1] / "results" / "serving_speed.json"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "speed-model.md"
IN_PAGE = re.compile(r"(<!-- speed errors -->\n).*?(\n<!-- end -->)", re.DOTALL)
_PART = 0.9


def quantile(sizes: Sequence[float], part: float = _PART) -> float:
    """The quantile of a list, by rank."""
    ordered = sorted(sizes)
    return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


def row_of(measurement: Measurement, table: Mapping[str, Any]) -> dict[str, Any]:
    """One row's prediction beside what was measured."""
    predicted, value = measurement.predicted(table), measurement.row["value"]
    kept = ("id", "engine", "model", "quant", "gpu", "tensor", "pipeline", "prompt_tokens", "output_tokens",
            "concurrency", "metric")  # fmt: skip
    return {
        **{name: measurement.row[name] for name in kept},
        "phase": measurement.phase,
        "measured": value,
        "predicted": round(predicted, 4 if predicted < 10 else 1),
        "error": round(predicted / value - 1, 4),
    }


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Errors by phase, and by engine within a phase."""
    by_phase: dict[str, Any] = {}
    for phase in PHASES:
        chosen = [row for row in rows if row["phase"] == phase]
        engines = sorted({row["engine"] for row in chosen})
        by_phase[phase] = {
            **_errors(chosen),
            "engines": {engine: _errors([row for row in chosen if row["engine"] == engine]) for engine in engines},
        }
    return {"rows": len(rows), "all": _errors(rows), "phases": by_phase}


def _errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return summary_of_errors([row["error"] for row in rows])


def summary_of_errors(errors: Sequence[float]) -> dict[str, Any]:
    """Median and 90 % quantile of signed errors, the quantile as a factor too, and the median with its sign."""
    sizes = [abs(error) for error in errors]
    ratios = [abs(math.log1p(error)) for error in errors]
    return {
        "rows": len(errors),
        "median": round(statistics.median(sizes), 4) if sizes else None,
        "p90": round(quantile(sizes), 4) if sizes else None,
        "factor": round(math.exp(quantile(ratios)), 3) if sizes else None,
        "bias": round(statistics.median(errors), 4) if sizes else None,
    }


def page_table(summary: Mapping[str, Any]) -> str:
    """The errors as docs/speed-model.md shows them, with those of fits that had not seen the rows."""
    unseen = json.loads(RESULTS.read_text(encoding="utf-8"))["held_out"]
    lines = [
        "| phase | engine | rows | median | p90 | factor | bias | unseen: median | unseen: factor |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for phase, found in summary["phases"].items():
        for engine, errors in (("all", found), *found["engines"].items()):
            blind = unseen[phase] if engine == "all" else None
            cells = [
                f"{100 * errors['median']:.0f} %", f"{100 * errors['p90']:.0f} %", f"{errors['factor']:.2f}",
                f"{100 * errors['bias']:+.0f} %",
                *((f"{100 * blind['median']:.0f} %", f"{blind['factor']:.2f}") if blind else ("", "")),
            ]  # fmt: skip
            lines.append(f"| {phase} | {engine} | {errors['rows']} | {' | '.join(cells)} |")
    return "\n".join(lines)
