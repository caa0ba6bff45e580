"""Score `sglang` budgets on what real SGLang start-ups printed.

    python benchmarks/sglang/score.py RECORDS.jsonl --configs DIR [--only ID ...] [--json]

A record has the settings of one start-up and what its log printed, per GPU (of one group under DP attention). What the
log printed before loading is given to the estimate as a user would give it; everything after that is predicted. Three
sources of the free memory are told apart in `input`:

    before   the log printed what was available before loading
    gpu      only the GPU is known: its memory less the context and communication of the model
    after    the log printed only what was left after loading: the predicted weights are added to it

Errors are signed, (predicted - real) / real. A row that cannot be answered counts as an error of 100 %; a row that does
not say enough to be asked is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from releases import release_at
from serving_records import (
    Record,
    Summary,
    TooLittle,
    find_record_gpu,
    find_record_model,
    is_requantized,
    number,
    scheme_of,
)

from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.sglang.engine import SGLANG
from memplan.errors import MemplanError
from memplan.units import GIB

_OPTIONS = (
    "mem_fraction_static",
    "chunked_prefill_size",
    "max_running_requests",
    "cuda_graph_max_bs",
    "disable_cuda_graph",
    "max_total_tokens",
    "page_size",
    "enable_dp_attention",
    "swa_full_tokens_ratio",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of the estimate for one record, and where its free memory is from."""

    spec: ModelSpec
    gpu: GpuSpec
    settings: ServingSettings
    version: str | None
    source: str
    after_gib: float | None = None


def question_of(record: Record, configs: Path) -> Question:
    """Read a record.

    Raises: TooLittle, MemplanError.
    """
    spec = find_record_model(record, configs)
    before_gib = number(record, "min_avail_before_all_ranks_gib") or number(record, "avail_before_load_gib")
    after_gib = number(record, "avail_after_load_gib")
    gpu, named = find_record_gpu(record, before_gib or after_gib)
    options = {key: record[key] for key in _OPTIONS if record.get(key) is not None}
    if before_gib is not None:
        options["avail_mem_before_load"] = before_gib
    if record.get("context_len"):
        options["context_length"] = record["context_len"]
    if record.get("ep") not in (None, 1):
        options["ep_size"] = record["ep"]
    if experts := re.search(r"(\d+) of \d+ experts on GPU", str(record.get("model"))):
        options["kt_num_gpu_experts"] = int(experts[1])
    kv_dtype = str(record.get("kv_cache_dtype") or "auto").removeprefix("torch.")
    plain = kv_dtype in ("auto", "bfloat16", "float16") and record.get("dtype") is None
    layout = ParallelLayout(
        tensor=int(number(record, "tp") or 1),
        pipeline=int(number(record, "pp") or 1),
        data=int(number(record, "dp") or 1),
    )
    settings = ServingSettings(
        layout=layout,
        quant=scheme_of(record) if is_requantized(record, configs) else None,
        dtype=str(record["dtype"]) if record.get("dtype") in ("float16", "bfloat16") else None,
        kv_dtype=None if plain else kv_dtype,
        engine_options=options,
    )
    source = "before" if before_gib is not None else "gpu"
    if source == "gpu" and after_gib is not None and (not named or after_gib < 0.9 * gpu.memory_bytes / GIB):
        source = "after"
    version = record.get("version") or (release_at(str(record["date"])) if record.get("date") else None)
    return Question(
        spec=spec,
        gpu=gpu,
        settings=settings,
        version=str(version) if version else None,
        source=source,
        after_gib=after_gib,
    )


def answer(question: Question) -> MemoryBudget:
    """Estimate; where only the memory after loading is known, the predicted weights are put back first."""
    budget = SGLANG.estimate(question.spec, question.gpu, question.settings, question.version)
    if question.source != "after" or question.after_gib is None:
        return budget
    before = question.after_gib + budget.group_bytes("weights") / GIB
    options = {**question.settings.engine_options, "avail_mem_before_load": before}
    settings = replace(question.settings, engine_options=options)
    return SGLANG.estimate(question.spec, question.gpu, settings, question.version)


def score(record: Record, budget: MemoryBudget) -> dict[str, object]:
    """The errors of one answered record, and whether the truth lies in the intervals."""
    result: dict[str, object] = {}
    weights_gib = number(record, "weights_gib")
    lines = [line for line in budget.lines if line.group == "weights"]
    if weights_gib:
        result["weights"] = budget.group_bytes("weights") / GIB / weights_gib - 1
        low, high = sum(line.low_bytes for line in lines), sum(line.high_bytes for line in lines)
        result["weights_in"] = low / GIB - 0.005 <= weights_gib <= high / GIB + 0.005
    tokens, size_gib = number(record, "kv_tokens"), number(record, "kv_size_gib")
    kv = budget.kv
    if tokens and kv.capacity_tokens is not None and kv.low_tokens is not None and kv.high_tokens is not None:
        result["kv"] = kv.capacity_tokens / tokens - 1
        result["kv_in"] = kv.low_tokens - 1 <= tokens <= kv.high_tokens + 1
    elif size_gib:
        cache = [line for line in budget.lines if line.group == "kv_cache" and line.name.startswith("KV cache")]
        result["kv"] = sum(line.size_bytes for line in cache) / GIB / size_gib - 1
        result["kv_in"] = (
            sum(line.low_bytes for line in cache) <= size_gib * GIB <= sum(line.high_bytes for line in cache)
        )
    graphs_gib = number(record, "cuda_graph_gib")
    if graphs_gib and graphs_gib > 0:
        decode = sum(line.size_bytes for line in budget.lines if line.name == "CUDA graphs, decode")
        result["graphs_gib"] = decode / GIB - graphs_gib
    return result


def wants(record: Record) -> set[str]:
    """What the record can be scored on.

    A cache whose fraction was not printed follows from the default of the release, so one of the two must be known.
    """
    wanted = set()
    if number(record, "weights_gib"):
        wanted.add("weights")
    has_fraction = any(record.get(key) is not None for key in ("mem_fraction_static", "version", "date"))
    if (number(record, "kv_tokens") or number(record, "kv_size_gib")) and has_fraction:
        wanted.add("kv")
    return wanted


def why_nothing(record: Record) -> str:
    """Why there is nothing to score a record on."""
    if number(record, "kv_tokens") or number(record, "kv_size_gib"):
        return "the log printed neither the memory fraction nor the release whose default it had"
    return "the log printed neither weights nor cache"


def rows_of(records: list[Record], configs: Path) -> list[dict[str, object]]:
    """One row per record: its errors, or why there are none."""
    rows: list[dict[str, object]] = []
    for record in records:
        row: dict[str, object] = {
            "id": record.get("id"),
            "model": record.get("model_hf"),
            "version": record.get("version"),
        }
        row["wants"] = sorted(wants(record))
        try:
            if not wants(record):
                raise TooLittle(why_nothing(record))
            question = question_of(record, configs)
            budget = answer(question)
        except TooLittle as reason:
            rows.append({**row, "too_little": str(reason)})
            continue
        except MemplanError as error:
            rows.append({**row, "problem": str(error)})
            continue
        row |= {
            "version": budget.engine_version,
            "gpu": budget.gpu_name,
            "input": question.source,
            "mem_fraction": budget.settings["mem_fraction_static"],
            "predicted_tokens": budget.kv.capacity_tokens,
            "real_tokens": record.get("kv_tokens"),
            "predicted_weights_gib": round(budget.group_bytes("weights") / GIB, 3),
            "real_weights_gib": record.get("weights_gib"),
        }
        scored = score(record, budget)
        if "kv" not in wants(record):
            scored = {key: value for key, value in scored.items() if not key.startswith("kv")}
            row["kv_left_out"] = why_nothing(record)
        rows.append({**row, **scored})
    return rows


def summary_of(rows: list[dict[str, object]]) -> dict[str, object]:
    """Medians and quantiles over the rows."""
    asked = [row for row in rows if "too_little" not in row]
    summary: dict[str, object] = {"records": len(rows), "asked": len(asked)}
    summary["unanswered"] = sum("problem" in row for row in asked)
    for key in ("kv", "weights"):
        lost = sum("problem" in row and key in str(row["wants"]) for row in asked)
        errors = tuple(float(row[key]) for row in asked if key in row)  # type: ignore[arg-type]
        summary[key] = Summary(errors=errors, unanswered=lost).as_dict()
        inside = [bool(row[f"{key}_in"]) for row in asked if f"{key}_in" in row]
        summary[f"{key}_interval_coverage"] = round(sum(inside) / len(inside), 4) if inside else None
    by_source: dict[str, object] = {}
    for source in ("before", "gpu", "after"):
        errors = tuple(float(row["kv"]) for row in asked if "kv" in row and row["input"] == source)  # type: ignore[arg-type]
        by_source[source] = Summary(errors=errors, unanswered=0).as_dict()
    summary["kv_by_input"] = by_source
    graphs = tuple(float(row["graphs_gib"]) for row in asked if "graphs_gib" in row)  # type: ignore[arg-type]
    summary["decode_graphs_gib"] = Summary(errors=graphs, unanswered=0).as_dict()
    summary["too_little"] = {str(row["id"]): row["too_little"] for row in rows if "too_little" in row}
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    records: list[Record] = [json.loads(line) for line in arguments.records.read_text().splitlines() if line.strip()]
    records = [record for record in records if not arguments.only or record.get("id") in arguments.only]
    rows = rows_of(records, arguments.configs)
    summary = summary_of(rows)
    if arguments.json:
        print(json.dumps({"summary": summary, "rows": rows}))
        return
    for row in sorted(rows, key=lambda row: -abs(float(row.get("kv", 0)))):  # type: ignore[arg-type]
        print(_text(row))
    print(json.dumps(summary, indent=1))


def _text(row: Mapping[str, object]) -> str:
    head = f"{row['id']} {str(row['model'])[:38]:38} {str(row['version'])[:12]:12}"
    if "too_little" in row or "problem" in row:
        return f"{head} {row.get('too_little') or 'PROBLEM ' + str(row.get('problem'))}"
    errors = " ".join(f"{key}={100 * float(row[key]):+.2f}%" for key in ("kv", "weights") if key in row)  # type: ignore[arg-type]
    outside = " ".join(key for key in ("kv", "weights") if row.get(f"{key}_in") is False)
    graphs = f" graphs={float(row['graphs_gib']):+.2f}GiB" if "graphs_gib" in row else ""  # type: ignore[arg-type]
    return (
        f"{head} {str(row['gpu'])[:16]:16} {row['input']:6} f={row['mem_fraction']} {errors}{graphs}"
        f" w {row['predicted_weights_gib']}/{row['real_weights_gib']}"
        f" t {row['predicted_tokens']}/{row['real_tokens']} {'OUTSIDE ' + outside if outside else ''}"
    )


if __name__ == "__main__":
    main()
