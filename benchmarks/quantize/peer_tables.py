"""Tables of what peers.py recorded: quality in pairs, times, memory.

The rise of perplexity is exp(more loss) - 1. Its error, and that of a difference between two libraries, is of two
parts: how the mean over seeds differs between runs of 128 tokens, which are the same for both, and how seeds differ.
"""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import mean, median, variance
from typing import Any

MIB = 1 << 20
Rows = list[dict[str, Any]]
_NAMES = {"native": "memplan", "gptqmodel": "GPTQModel", "llmcompressor": "llm-compressor", "autoawq": "AutoAWQ"}
_MODELS = ("demo", "outliers", "large")
_METHODS = ("gptq", "awq", "awq+gptq", "int8")


def tables(rows: Rows) -> str:
    """All tables, with a line between them."""
    return "\n\n".join(table(rows) for table in TABLES.values())


def quality_table(rows: Rows) -> str:
    """The rise of perplexity by setting and library, and ours less theirs."""
    lines = ["| model | bits | group | method | library | rise of perplexity | ours less theirs | divergence | seeds |"]
    lines += ["|---|---:|---:|---|---|---:|---:|---:|---:|"]
    for (model, bits, group, method, _), libraries in _settings(rows).items():
        if method == "int8":
            continue
        for library, found in libraries.items():
            cells = [model, str(bits), str(group), method, _NAMES[library], _percent(*rise(found))]
            cells += [_percent(*difference(libraries["native"], found)) if _is_peer(library, libraries) else ""]
            cells += [f"{mean(row['divergence'] for row in found):.4f}", str(len(found))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def int8_table(rows: Rows) -> str:
    """The rise of perplexity of 8 bits."""
    lines = ["| model | `int8` | library | rise of perplexity | ours less theirs | divergence | seeds |"]
    lines += ["|---|---|---|---:|---:|---:|---:|"]
    for (model, _, _, method, weights_only), libraries in _settings(rows).items():
        for library, found in libraries.items() if method == "int8" else ():
            cells = [model, "weights only" if weights_only else "weights and activations", _NAMES[library]]
            cells += [_percent(*rise(found))]
            cells += [_percent(*difference(libraries["native"], found)) if _is_peer(library, libraries) else ""]
            cells += [f"{mean(row['divergence'] for row in found):.5f}", str(len(found))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table(rows: Rows) -> str:
    """Medians of times, of warmed-up runs where there are such, and of peaks, of others: 4 bits in groups of 128."""
    lines = ["| model | windows | method | library | CPU s | s | CPU s, all of it | peak MiB | runs |"]
    lines += ["|---|---:|---|---|---:|---:|---:|---:|---:|"]
    timed: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        if (row["bits"], row["group_size"]) == (4, 128) and "error" not in row:
            timed[row["model"], row["num_samples"], row["method"], row["library"]].append(row)
    for place, found in sorted(timed.items(), key=lambda item: _place(item[0])):
        warm = [row for row in found if row["warms_up"]]
        cold = [row for row in found if not row["warms_up"]]
        keys = ("call_cpu_seconds", "call_seconds", "cpu_seconds")
        times = [f"{median(row[key] for row in warm or cold):.1f}" for key in keys]
        peak = f"{median(row['peak_bytes'] for row in cold or warm) / MIB:,.0f}"
        runs = f"{len(warm)} warm" if warm else str(len(cold))
        cells = [str(cell) for cell in (*place[:3], _NAMES[place[3]], *times, peak, runs)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rise(rows: Rows) -> tuple[float, float]:
    """The rise of perplexity over seeds, and its error."""
    return _mean_and_error([row["more_loss"] for row in rows], rows[0]["tokens"])


def difference(ours: Rows, theirs: Rows) -> tuple[float, float]:
    """By how much our perplexity is above theirs, as a part, over the seeds that both have, and its error."""
    own = {row["seed"]: row["more_loss"] for row in ours}
    pairs = [(own[row["seed"]], row["more_loss"]) for row in theirs if row["seed"] in own]
    less = [[a - b for a, b in zip(one, other, strict=True)] for one, other in pairs]
    return _mean_and_error(less, ours[0]["tokens"])


def _mean_and_error(sums: list[list[float]], tokens: int) -> tuple[float, float]:
    """By what part perplexity is higher where losses are, in sums over runs of tokens by seed; its standard error."""
    means = [sum(of_seed) / tokens for of_seed in sums]
    num_runs = len(sums[0])
    by_run = [mean(each) * num_runs / tokens for each in zip(*sums, strict=True)]
    error = math.sqrt(variance(by_run) / num_runs + (variance(means) / len(means) if len(means) > 1 else 0.0))
    return math.expm1(mean(means)), error


def _settings(rows: Rows) -> dict[tuple[Any, ...], dict[str, Rows]]:
    """The runs whose quality was measured, by setting and library, in the order of the tables; ours first."""
    found: dict[tuple[Any, ...], dict[str, Rows]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: list(_NAMES).index(row["library"])):
        if "more_loss" in row:
            setting = tuple(row[key] for key in ("model", "bits", "group_size", "method", "weights_only"))
            found[setting][row["library"]].append(row)

    def order(setting: tuple[Any, ...]) -> tuple[Any, ...]:
        model, bits, group, method, weights_only = setting
        return _MODELS.index(model), -bits, -group, _METHODS.index(method), weights_only

    return {setting: found[setting] for setting in sorted(found, key=order)}


def _is_peer(library: str, libraries: dict[str, Rows]) -> bool:
    return library != "native" and "native" in libraries


def _place(key: tuple[Any, ...]) -> tuple[int, ...]:
    model, num_samples, method, library = key
    return _MODELS.index(model), num_samples, _METHODS.index(method), list(_NAMES).index(library)


def _percent(value: float, error: float) -> str:
    return f"{100 * value:+.2f} ± {100 * error:.2f} %"


TABLES = {"quality": quality_table, "int8": int8_table, "times": time_table}
