"""Score `llama.cpp` budgets on what real starts of llama.cpp and ik_llama.cpp printed.

    python benchmarks/llama_cpp/score.py RECORDS.jsonl --configs DIR [--only ID ...] [--json]

A record has what one start printed: the model's shape, its mix and size, the context, and every buffer by device.
Settings that the log does not print are read back from where buffers lie (see records.py). The mix's name gives the
weights; where a file is not what its name says (mixes of the fork, a publisher's own), its printed size takes the place
of its header, and `weights_from` says so.

    kv       the whole cache, over all devices
    weights  of the GPUs, or of the host where no GPU holds any
    compute  compute buffers of the same devices
    total    the three together, on rows that print all of them
    host     weights and compute buffers in host memory, where GPUs hold the rest

Errors are signed, (predicted - real) / real. A row that cannot be answered counts as an error of 100 %; a row that
prints too little to be asked is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from records import Question, Record, question_of
from serving_records import Summary, TooLittle

from memplan.engines.llama_cpp.fitted import spreads
from memplan.engines.llama_cpp.plan import Plan
from memplan.errors import MemplanError
from memplan.units import MIB

_TERMS = ("kv", "weights", "compute", "total")
# What a field of an unexpected kind ends in.
_UNREADABLE = (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError, AssertionError)
# Logs print hundredths of a MiB, one per buffer.
_PRINTED_MIB = 0.005


def predicted_mib(question: Question, plan: Plan) -> dict[str, float]:
    """The terms as the engine's rules give them."""
    devices = range(max(1, plan.devices.num_gpus))
    scale = question.size_scale
    weights = sum(plan.weights.by_device[device] for device in devices) * scale
    compute = sum(plan.compute[device] for device in devices)
    # Logs print states apart from keys and values, or as the whole cache of a model that has nothing else.
    parts = plan.cache.keys_and_values if any(plan.cache.keys_and_values) else plan.cache.states
    cached = sum(parts[device] for device in devices)
    host_weights = plan.weights.host_bytes * scale
    return {
        "kv": sum(parts) / MIB,
        "weights": weights / MIB,
        "compute": compute / MIB,
        "total": (weights + compute + cached) / MIB,
        "host": (host_weights + plan.compute[plan.devices.host]) / MIB if plan.devices.num_gpus else 0.0,
    }


def real_mib(question: Question) -> dict[str, float]:
    """The same terms as printed; those that the log does not print are left out."""
    printed, real = question.printed, {}
    on_gpus = bool(question.settings.num_gpus)
    if printed.cache is not None:
        real["kv"] = printed.cache
    weights = printed.weights if on_gpus else (printed.host_weights,)
    compute = printed.compute if on_gpus else (printed.host_compute,)
    if weights and None not in weights and sum(weights):  # type: ignore[arg-type]
        real["weights"] = sum(weights)  # type: ignore[arg-type]
    if compute and None not in compute and sum(compute):  # type: ignore[arg-type]
        real["compute"] = sum(compute)  # type: ignore[arg-type]
    cached = printed.gpu_cache if on_gpus else printed.cache
    if cached is not None and {"weights", "compute"} <= real.keys():
        real["total"] = real["weights"] + real["compute"] + cached
    if on_gpus and printed.host_weights and printed.host_compute:
        real["host"] = printed.host_weights + printed.host_compute
    return real


def score(question: Question) -> dict[str, object]:
    """The errors of one answered record, and whether the truth lies in the 90 % intervals."""
    plan = question.answer()
    predicted, real = predicted_mib(question, plan), real_mib(question)
    result: dict[str, object] = {}
    fitted = spreads(question.spec, question.settings, question.rules)
    handmade = question.size_scale != 1.0
    weights = question.rules["weights_spread_handmade"] if handmade else fitted.weights
    widths = {"weights": weights, "compute": fitted.compute, "kv": 0.0}
    rounding = _PRINTED_MIB * (1 + question.settings.num_gpus)
    for term, truth in real.items():
        result[f"predicted_{term}_mib"] = round(predicted[term], 2)
        result[f"real_{term}_mib"] = round(truth, 2)
        if not truth:
            continue
        result[term] = predicted[term] / truth - 1
        if term in widths:
            result[f"{term}_in"] = abs(predicted[term] - truth) <= widths[term] * predicted[term] + rounding
    return result


def row_of(record: Record, configs: Path) -> dict[str, object]:
    """One record's errors, or why there are none."""
    row: dict[str, object] = {
        "id": record.get("id"),
        "model": record.get("model_name"),
        "arch": record.get("arch"),
        "engine": "ik_llama.cpp" if "ik_llama" in str(record.get("engine")) else "llama.cpp",
    }
    try:
        question = question_of(record, configs)
    except TooLittle as reason:
        return {**row, "too_little": str(reason)}
    except MemplanError as error:
        return {**row, "problem": str(error)}
    except _UNREADABLE as error:
        return {**row, "too_little": f"a field does not read: {type(error).__name__}: {error}"}
    row |= {
        "version": question.rules.version,
        "mix": question.mix,
        "weights_from": "size" if question.size_scale != 1.0 else "mix",
        "gpus": question.settings.num_gpus,
    }
    try:
        return {**row, **score(question)}
    except MemplanError as error:
        return {**row, "problem": str(error)}
    except _UNREADABLE as error:
        return {**row, "problem": f"{type(error).__name__}: {error}"}


def summary_of(rows: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Medians and quantiles over the rows, of the main line apart from the fork."""
    asked = [row for row in rows if "too_little" not in row]
    mainline = [row for row in asked if row["engine"] == "llama.cpp"]
    exact = [row for row in mainline if "kv" in row and abs(_error(row, "kv")) * _error(row, "real_kv_mib") < 0.02]
    summary: dict[str, object] = {
        "records": len(rows),
        "asked": len(asked),
        "unanswered": sum("problem" in row for row in asked),
        "mainline_kv_rows": sum("kv" in row for row in mainline),
        "mainline_kv_exact": len(exact),
    }
    for name, chosen in (("all", asked), ("mainline", mainline)):
        part: dict[str, object] = {}
        lost = sum("problem" in row for row in chosen)
        for term in (*_TERMS, "host"):
            errors = tuple(_error(row, term) for row in chosen if term in row)
            part[term] = Summary(errors=errors, unanswered=lost).as_dict()
            inside = [bool(row[f"{term}_in"]) for row in chosen if f"{term}_in" in row]
            if inside:
                part[f"{term}_interval_coverage"] = round(sum(inside) / len(inside), 4)
        summary[name] = part
    summary["too_little"] = {str(row["id"]): row["too_little"] for row in rows if "too_little" in row}
    return summary


def _error(row: Mapping[str, object], term: str) -> float:
    return float(str(row[term]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    records: list[Record] = [json.loads(line) for line in arguments.records.read_text().splitlines() if line.strip()]
    records = [record for record in records if not arguments.only or record.get("id") in arguments.only]
    rows = [row_of(record, arguments.configs) for record in records]
    summary = summary_of(rows)
    if arguments.json:
        print(json.dumps({"summary": summary, "rows": rows}))
        return
    for row in sorted(rows, key=lambda row: -abs(_error(row, "total")) if "total" in row else 0.0):
        print(_text(row))
    print(json.dumps(summary, indent=1))


def _text(row: Mapping[str, object]) -> str:
    head = f"{row['id']} {str(row['model'])[:30]:30} {str(row['arch'])[:10]:10} {str(row.get('version'))[:7]:7}"
    if "too_little" in row or "problem" in row:
        return f"{head} {row.get('too_little') or 'PROBLEM ' + str(row.get('problem'))}"
    fork = "ik " if row["engine"] != "llama.cpp" else ""
    terms = " ".join(f"{term}={100 * _error(row, term):+.2f}%" for term in (*_TERMS, "host") if term in row)
    outside = " ".join(term for term in _TERMS if row.get(f"{term}_in") is False)
    compute = f" c {row.get('predicted_compute_mib')}/{row.get('real_compute_mib')}"
    return f"{head} {fork}{row['mix']}{'*' * (row['weights_from'] == 'size')} g{row['gpus']} {terms}{compute}" + (
        f" OUTSIDE {outside}" if outside else ""
    )


if __name__ == "__main__":
    main()
