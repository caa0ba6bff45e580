"""Fit the speed model's efficiencies on published measurements and write memplan/catalog/efficiency.yaml.

    python benchmarks/serving_speed/fit.py [--write] [--held-out]

Per engine there are six numbers (parts of the sheet's tensor rate and memory bandwidth, overhead per pass, per layer,
per sequence and per request), per GPU class but Hopper three factors (on the fractions, and on overheads), one latency
for collectives, numbers for narrow types, packed weights and routed experts; llama.cpp has three more, for cards with
fast memory, packed weights in prompts and cards with little power, and transformers one for what its offloading
reaches of the bus. The fit minimises the sum of
|log(predicted / measured)| over all rows, each group of rows (one source, model, GPU and scheme) weighing as much as
the square root of its rows, plus a pull of every number towards its start, which is what decides where rows say
nothing. Coordinates are searched one after another, in steps that halve. Nothing is random.

`error` in the file is not that of the fit: five fits on four fifths of the groups each answer the fifth that they have
not seen. `--held-out` prints those errors alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measurements import PHASES, Measurement, read_measurements
from speed_errors import RESULTS, quantile, summary_of_errors

from memplan.catalog.efficiency import gpu_class

TARGET = Path(__file__).resolve().parents[2] / "memplan" / "catalog" / "efficiency.yaml"
_PULL = 0.03
_SWEEPS = 40
_FIRST_STEP, _LAST_STEP = 0.4, 0.01
_FOLDS = 5
_TOPS = {"compute": 0.75, "bandwidth": 0.9}
_START = {
    "compute": 0.5,
    "bandwidth": 0.75,
    "step_us": 300.0,
    "layer_us": 5.0,
    "sequence_us": 10.0,
    "request_us": 8000.0,
}
# The class whose factors stay at one: engines are told apart on it, other classes are told apart from it.
_ANCHOR = "hopper"
# One number each, for all engines and GPUs.
_SHARED = {"narrow": 0.8, "packed": 0.8, "experts": 0.8, "experts_us": 20.0}
# What a program that is called directly does not have: a request's way through a server.
_CALLED = ("llama.cpp", "transformers")
_HEAD = """\
# How much of a GPU engines reach. Written by benchmarks/serving_speed/fit.py from the {rows} published measurements in
# benchmarks/serving_speed/published.jsonl; do not edit by hand. docs/speed-model.md says what the numbers mean and how
# far off they are.
#
# engines   compute and bandwidth: parts of the sheet's dense tensor rate and memory bandwidth; step_us, layer_us and
#           request_us: overhead of a pass, of each of its layers, and of a request before its first token.
#           rows: measurements behind the entry. pcie: part of the bus that reads of host weights reach, where measured.
#           sequence_us: of every sequence that a pass extends. half_accumulation: multiplies with FP16 sums.
#           hbm: factor on the bandwidth of cards above 1.4 TB/s. packed_compute: part of the rate at which weights
#           below 8 bit are multiplied. power: what is lost on cards with little board power for their tensor rate.
# classes   factors on both fractions, and on layer_us and the link's latency, for a generation of GPUs
# packed    part of the bandwidth at which weights below 8 bit are read that are multiplied in 16 bit
# experts   part of the bandwidth at which routed experts are read; experts_us: overhead of a layer that routes
# narrow    part of the 16-bit fraction that types narrower than 16 bit reach of their own rate
# default   an engine that is not listed: the median of those that are
# link      part of a link's rate that collectives reach (assumed), and the fitted latency of one
# host      assumed: the part of PCIe that pinned copies reach, and the host's memory bandwidth as llama.cpp uses it
# error     90 % quantiles of predicted/measured - 1 (the larger way round) on rows that a fit had not seen: of prompts
#           alone, and of decode steps alone and under load
"""


@dataclass(frozen=True)
class Knob:
    """One number of the table, and the rows that depend on it."""

    path: tuple[str, str, str]
    start: float
    rows: tuple[int, ...]
    top: float


def start_table(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """The table that the fit starts from, with the counts of rows."""
    engines = Counter(each.row["engine"] for each in measurements)
    classes = Counter(gpu_class(each.gpu) for each in measurements)
    rows = {
        engine: {**_START, "request_us": 0.0 if engine in _CALLED else _START["request_us"], "rows": count}
        for engine, count in sorted(engines.items())
    }
    rows["llama.cpp"] |= {"computes_on_host": True, "half_accumulation": True, "hbm": 0.8}
    rows["llama.cpp"] |= {"packed_compute": 0.8, "power": 0.5}
    return {
        "default": dict(_START),
        "engines": rows,
        "classes": {
            name: {"compute": 1.0, "bandwidth": 1.0, "overhead": 1.0, "rows": count}
            for name, count in sorted(classes.items())
        },
        **_SHARED,
        "link": {"fraction": 0.7, "latency_us": 10.0},
        "host": {"pcie": 0.8, "gb_per_s": 30},
        "error": {"prefill": 0.7, "decode": 0.7},
    }


def knobs_of(table: dict[str, Any], measurements: Sequence[Measurement]) -> Iterator[Knob]:
    """Every number that is fitted."""
    fitted = [index for index, each in enumerate(measurements) if each.phase != "offload"]
    for engine, entry in table["engines"].items():
        rows = tuple(index for index in fitted if measurements[index].row["engine"] == engine)
        for name, start in _START.items():
            if entry[name]:
                yield Knob(("engines", engine, name), start, rows, _TOPS.get(name, 1e9))
    for kind in table["classes"]:
        if kind == _ANCHOR:
            continue
        rows = tuple(index for index in fitted if gpu_class(measurements[index].gpu) == kind)
        for name, top in (("compute", 1.6), ("bandwidth", 1.6), ("overhead", 10.0)):
            yield Knob(("classes", kind, name), 1.0, rows, top)
    tensor = tuple(index for index in fitted if measurements[index].layout.tensor > 1)
    yield Knob(("link", "latency_us", ""), 10.0, tensor, 1e9)
    llama = tuple(index for index in fitted if measurements[index].row["engine"] == "llama.cpp")
    if llama:
        yield Knob(("engines", "llama.cpp", "hbm"), 0.8, llama, 1.0)
        yield Knob(("engines", "llama.cpp", "packed_compute"), 0.8, llama, 1.0)
        yield Knob(("engines", "llama.cpp", "power"), 0.5, llama, 1.0)
    for engine in table["engines"]:
        rows = tuple(
            index for index, each in enumerate(measurements) if each.phase == "offload" and each.row["engine"] == engine
        )
        if rows:
            table["engines"][engine].setdefault("pcie", 0.8)
            yield Knob(("engines", engine, "pcie"), 0.8, rows, 0.9)
    for name, start in _SHARED.items():
        yield Knob((name, "", ""), start, tuple(fitted), 1e9 if name == "experts_us" else 1.0)


def _get(table: dict[str, Any], path: tuple[str, str, str]) -> float:
    entry: Any = table
    for name in path:
        entry = entry[name] if name else entry
    return float(entry)


def _put(table: dict[str, Any], path: tuple[str, str, str], value: float) -> None:
    *parents, last = (name for name in path if name)
    entry = table
    for name in parents:
        entry = entry[name]
    entry[last] = value


def fit(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return the table that fits the measurements best."""
    table = start_table(measurements)
    sizes = Counter(each.group for each in measurements)
    weights = [1.0 / math.sqrt(sizes[each.group]) for each in measurements]
    step = _FIRST_STEP
    for _ in range(_SWEEPS):
        moved = False
        for knob in knobs_of(table, measurements):
            moved |= _search(table, knob, _loss(table, knob, measurements, weights), step)
        if not moved:
            step /= 2
        if step < _LAST_STEP:
            break
    return table


def _loss(
    table: dict[str, Any], knob: Knob, measurements: Sequence[Measurement], weights: Sequence[float]
) -> Callable[[float], float]:
    def loss(value: float) -> float:
        _put(table, knob.path, value)
        missed = sum(weights[index] * abs(measurements[index].error(table)) for index in knob.rows)
        return missed + _PULL * math.sqrt(max(1, len(knob.rows))) * math.log(value / knob.start) ** 2

    return loss


def _search(table: dict[str, Any], knob: Knob, loss: Callable[[float], float], step: float) -> bool:
    """Move one number a step up or down while that helps."""
    value = _get(table, knob.path)
    best, moved = loss(value), False
    for factor in (1 + step, 1 / (1 + step)):
        while True:
            tried = min(value * factor, knob.top)
            found = loss(tried)
            if found >= best - 1e-9:
                break
            value, best, moved = tried, found, True
    _put(table, knob.path, value)
    return moved


def finish(table: dict[str, Any]) -> dict[str, Any]:
    """Round the numbers, and add the default."""
    rounded = copy.deepcopy(table)
    for entry in (*rounded["engines"].values(), *rounded["classes"].values(), rounded["link"]):
        for name, value in entry.items():
            if isinstance(value, float):
                entry[name] = float(f"{value:.3g}")
    for name in _SHARED:
        rounded[name] = float(f"{rounded[name]:.3g}")
    rounded["default"] = {
        name: float(f"{statistics.median(entry[name] for entry in rounded['engines'].values()):.3g}") for name in _START
    }
    return rounded


def spreads(errors: dict[str, list[float]]) -> dict[str, float]:
    """The 90 % quantiles that the catalogue keeps: decode steps are asked about under load too."""

    def spread(*phases: str) -> float:
        return float(f"{math.expm1(quantile([abs(error) for phase in phases for error in errors[phase]])):.2g}")

    return {"prefill": spread("prefill"), "decode": spread("decode", "serving")}


def held_out(measurements: Sequence[Measurement]) -> dict[str, list[float]]:
    """Errors of every row under a fit that has not seen its group."""
    groups = sorted({each.group for each in measurements})
    errors: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for fold in range(_FOLDS):
        left_out = set(groups[fold::_FOLDS])
        table = finish(fit([each for each in measurements if each.group not in left_out]))
        for each in measurements:
            if each.group in left_out:
                errors[each.phase].append(each.error(table))
    return errors


def written(table: dict[str, Any], rows: int) -> str:
    """The file: one entry a line."""

    def line(entry: dict[str, Any]) -> str:
        parts = (
            f"{name}: {str(value).lower() if isinstance(value, bool) else f'{value:g}'}"
            for name, value in entry.items()
        )
        return "{" + ", ".join(parts) + "}"

    text = [_HEAD.format(rows=rows), f"default: {line(table['default'])}\n"]
    for part in ("engines", "classes"):
        text.append(f"{part}:\n")
        text += [f"  {name}: {line(entry)}\n" for name, entry in table[part].items()]
    text += [f"{name}: {table[name]:g}\n" for name in _SHARED]
    text += [f"{part}: {line(table[part])}\n" for part in ("link", "host", "error")]
    return "".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the catalogue's file instead of printing it")
    parser.add_argument("--held-out", action="store_true", help="print the errors on groups that a fit has not seen")
    arguments = parser.parse_args()
    measurements = read_measurements()
    errors = held_out(measurements)
    unseen = {phase: summary_of_errors([math.expm1(error) for error in found]) for phase, found in errors.items()}
    for phase, found in unseen.items():
        print(f"{phase:8} {found}", file=sys.stderr)
    if arguments.held_out:
        return
    table = finish(fit(measurements))
    table["error"] = spreads(errors)
    text = written(table, len(measurements))
    if arguments.write:
        TARGET.write_text(text, encoding="utf-8")
        RESULTS.write_text(json.dumps({"held_out": unseen}, indent=1) + "\n", encoding="utf-8")
        print(f"Wrote {TARGET.name}")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
