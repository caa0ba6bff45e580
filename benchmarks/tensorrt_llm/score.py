"""Score `tensorrt-llm` budgets on what real TensorRT-LLM start-ups printed.

    python benchmarks/tensorrt_llm/score.py RECORDS.jsonl --configs DIR [--only ID ...] [--json]

A record has the settings of one start-up and what its log printed, per GPU. What is given to the estimate, in `input`:

    gpu       the GPU and the settings: weights, profiled step and what is outside torch are all predicted
    outside   memory shared with the host: what lies outside torch is other programs', so the log's number is given
    free      the engine flow prints what is free before the cache; that is given, weights and buffers are not needed

Errors are signed, (predicted - real) / real. A row that cannot be answered counts as an error of 100 %; a row that does
not say enough to be asked is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from serving_records import Record, Summary, TooLittle, find_record_gpu, find_record_model, is_requantized, number

from memplan.catalog.rules import parse_release
from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.tensorrt_llm.engine import TENSORRT_LLM
from memplan.errors import MemplanError
from memplan.units import GIB

_OPTIONS = ("free_gpu_memory_fraction", "max_num_tokens", "max_batch_size", "max_seq_len", "tokens_per_block")
_MEASURED = ("weights", "activation", "outside")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of the estimate for one record, and what of its log was given."""

    spec: ModelSpec
    gpu: GpuSpec
    settings: ServingSettings
    version: str | None
    source: str


def question_of(record: Record, configs: Path) -> Question:
    """Read a record.

    Raises: TooLittle, MemplanError.
    """
    spec = find_record_model(record, configs)
    outside_gib, free_gib = outside_torch_gib(record), number(record, "free_before_kv_gib")
    gpu, _ = find_record_gpu(record, number(record, "total_gpu_memory_gib"))
    options: dict[str, object] = {key: record[key] for key in _OPTIONS if record.get(key) is not None}
    source = "gpu"
    is_engine = "engine" in str(record.get("backend"))
    options["backend"] = "tensorrt" if is_engine else "pytorch"
    if is_engine and free_gib is not None:
        options["free_memory_before_cache"] = free_gib
        source = "free"
    elif "memory is shared" in gpu.note and outside_gib is not None:
        options["outside_torch"] = f"{outside_gib:.2f}GiB"
        source = "outside"
    if record.get("cuda_graph_max_bs") is not None:
        options["cuda_graph_max_batch_size"] = record["cuda_graph_max_bs"]
    if record.get("enable_dp_attention"):
        options["enable_attention_dp"] = True
    if record.get("ep") not in (None, 1):
        options["moe_expert_parallel_size"] = record["ep"]
    kv_dtype = str(record.get("kv_cache_dtype") or "auto").removeprefix("torch.")
    settings = ServingSettings(
        layout=ParallelLayout(tensor=int(number(record, "tp") or 1), pipeline=int(number(record, "pp") or 1)),
        quant=spec.quantization if is_requantized(record, configs) else None,
        dtype=str(record["dtype"]) if record.get("dtype") in ("float16", "bfloat16") else None,
        kv_dtype=None if kv_dtype in ("auto", "bfloat16", "float16") else kv_dtype,
        engine_options=options,
    )
    version = record.get("version")
    return Question(spec=spec, gpu=gpu, settings=settings, version=str(version) if version else None, source=source)


def outside_torch_gib(record: Record) -> float | None:
    """What lay outside torch when the cache was sized, without the temporary cache of the profiled step."""
    size_gib = number(record, "outside_torch_peak_gib") or number(record, "outside_torch_after_load_gib")
    return None if size_gib is None else max(0.0, size_gib - (number(record, "tmp_kv_gib") or 0.0))


def wants(record: Record) -> set[str]:
    """What the record can be scored on."""
    wanted = set()
    if number(record, "weights_gib") or number(record, "engine_size_mib"):
        wanted.add("weights")
    if number(record, "kv_tokens") or number(record, "kv_size_gib") or number(record, "available_for_kv_gib"):
        wanted.add("kv")
    return wanted


def refuse(record: Record) -> None:
    """Say why a record cannot be asked.

    Raises: TooLittle.
    """
    if not wants(record):
        raise TooLittle("the log printed neither weights nor cache")
    if not isinstance(record.get("model_hf"), str):
        raise TooLittle("the log does not say which model it is")
    if re.search(r"do not use as (?:model )?truth", str(record.get("notes")), re.IGNORECASE):
        raise TooLittle("the record says that its numbers are not of one model")


def held_gib(budget: MemoryBudget) -> dict[str, float]:
    """The terms that a PyTorch start-up prints beside its cache.

    From 1.0 on kernels are tuned and graphs captured before anything is printed, so the attention workspace counts as
    held after loading; before that it is allocated in the profiled step. Graphs lie outside torch.
    """
    sizes = {line.name: line.size_bytes / GIB for line in budget.lines}
    workspace = sizes.get("attention workspace", 0.0)
    is_tuned = parse_release(str(budget.engine_version)) >= (1, 0, 0)
    activation = sum(size for name, size in sizes.items() if name.startswith("activation peak"))
    outside = sum(line.size_bytes for line in budget.lines if line.group in ("non_torch", "cuda_graph")) / GIB
    return {
        "weights": budget.group_bytes("weights") / GIB + (workspace if is_tuned else 0.0),
        "activation": activation + (0.0 if is_tuned else workspace),
        "outside": outside,
    }


def real_gib(record: Record) -> dict[str, float | None]:
    """What the log printed of the same terms."""
    engine_mib = number(record, "engine_size_mib")
    return {
        "weights": number(record, "weights_gib") or (engine_mib / 1024 if engine_mib else None),
        "activation": number(record, "activation_gib"),
        "outside": outside_torch_gib(record),
    }


def score(record: Record, budget: MemoryBudget) -> dict[str, object]:
    """The errors of one answered record, and whether the truth lies in the intervals."""
    result: dict[str, object] = {}
    real, held = real_gib(record), held_gib(budget)
    lines = [line for line in budget.lines if line.group == "weights"]
    if real["weights"]:
        result["weights"] = held["weights"] / real["weights"] - 1
        rest = held["weights"] - budget.group_bytes("weights") / GIB
        low = sum(line.low_bytes for line in lines) / GIB + rest
        high = sum(line.high_bytes for line in lines) / GIB + rest
        result["weights_in"] = low - 0.005 <= real["weights"] <= high + 0.005
    result |= {f"{name}_gib": held[name] - size for name in _MEASURED if (size := real[name]) is not None}
    kv, tokens = budget.kv, number(record, "kv_tokens")
    size_gib = number(record, "kv_size_gib") or number(record, "available_for_kv_gib")
    if tokens and kv.capacity_tokens is not None and kv.low_tokens is not None and kv.high_tokens is not None:
        result["kv"] = kv.capacity_tokens / tokens - 1
        result["kv_in"] = kv.low_tokens - 1 <= tokens <= kv.high_tokens + 1
    elif size_gib:
        cache = next(line for line in budget.lines if line.name == "KV cache")
        result["kv"] = cache.size_bytes / GIB / size_gib - 1
        result["kv_in"] = cache.low_bytes / GIB - 0.005 <= size_gib <= cache.high_bytes / GIB + 0.005
    return result


def rows_of(records: list[Record], configs: Path) -> list[dict[str, object]]:
    """One row per record: its errors, or why there are none."""
    rows: list[dict[str, object]] = []
    for record in records:
        row: dict[str, object] = {"id": record.get("id"), "model": record.get("model_hf")}
        row["wants"] = sorted(wants(record))
        try:
            refuse(record)
            question = question_of(record, configs)
            budget = TENSORRT_LLM.estimate(question.spec, question.gpu, question.settings, question.version)
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
            "backend": budget.settings["backend"],
            "predicted_tokens": budget.kv.capacity_tokens,
            "real_tokens": record.get("kv_tokens"),
            "predicted_gib": {name: round(size, 3) for name, size in held_gib(budget).items()},
            "real_gib": {name: size for name, size in real_gib(record).items() if size is not None},
        }
        rows.append({**row, **score(record, budget)})
    return rows


def summary_of(rows: list[dict[str, object]]) -> dict[str, object]:
    """Medians and quantiles over the rows."""
    asked = [row for row in rows if "too_little" not in row]
    summary: dict[str, object] = {"records": len(rows), "asked": len(asked)}
    summary["unanswered"] = sum("problem" in row for row in asked)
    for key in ("kv", "weights"):
        lost = sum("problem" in row and key in str(row["wants"]) for row in asked)
        summary[key] = Summary(errors=_errors(asked, key), unanswered=lost).as_dict()
        inside = [bool(row[f"{key}_in"]) for row in asked if f"{key}_in" in row]
        summary[f"{key}_interval_coverage"] = round(sum(inside) / len(inside), 4) if inside else None
    sources = {str(row["input"]) for row in asked if "input" in row}
    summary["kv_by_input"] = {
        source: Summary(errors=_errors([r for r in asked if r.get("input") == source], "kv"), unanswered=0).as_dict()
        for source in sorted(sources)
    }
    for name in _MEASURED[1:]:
        summary[f"{name}_gib"] = Summary(errors=_errors(asked, f"{name}_gib"), unanswered=0).as_dict()
    summary["too_little"] = {str(row["id"]): row["too_little"] for row in rows if "too_little" in row}
    return summary


def _errors(rows: list[dict[str, object]], key: str) -> tuple[float, ...]:
    return tuple(float(str(row[key])) for row in rows if key in row)


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
    for row in sorted(rows, key=lambda row: -abs(float(str(row.get("kv", 0))))):
        print(_text(row))
    print(json.dumps(summary, indent=1))


def _text(row: Mapping[str, object]) -> str:
    head = f"{row['id']} {str(row['model'])[:38]:38}"
    if "too_little" in row or "problem" in row:
        return f"{head} {row.get('too_little') or 'PROBLEM ' + str(row.get('problem'))}"
    errors = " ".join(f"{key}={100 * float(str(row[key])):+.2f}%" for key in ("kv", "weights") if key in row)
    outside = " ".join(key for key in ("kv", "weights") if row.get(f"{key}_in") is False)
    tokens = f"t {row['predicted_tokens']}/{row['real_tokens']}"
    return (
        f"{head} {row['version']!s:9} {str(row['gpu'])[:16]:16} {row['input']:7} {errors} {tokens}"
        f" {row['predicted_gib']} / {row['real_gib']} {'OUTSIDE ' + outside if outside else ''}"
    )


if __name__ == "__main__":
    main()
