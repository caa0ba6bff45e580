"""Score verdicts against what real start-ups did: refusals, out-of-memory crashes, and starts.

    python benchmarks/verdicts/score.py RECORDS.jsonl [--configs DIR] [--json]

A record is one JSON object a line: model, GPU, settings as far as they were printed, and `verdict`: `starts`, or how it
failed. A false `fits` is a failure that memplan calls `fits`; a false `does not fit` is a start that it refuses.
`tight` is neither, and counted. A record that does not name its model, its GPU, or its release cannot be asked; it is
listed with what is missing, never dropped in silence. What else it leaves out:

- how many GPUs: one, which is vLLM's default, unless several workers are spoken of;
- the release of a report in vLLM's own tracker: dated by its number;
- utilization, batch and type of the cache: those of another run of the same author's, model, build and cards, if the
  runs that print them agree;
- other programs on the card are taken as the record describes them: a part of the card, or a second engine like the
  first.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from memplan import pipeline
from memplan.cli.serving_options import parse_devices
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.registry import parse_engine
from memplan.errors import MemplanError
from memplan.units import GIB

Record = dict[str, Any]


# Reports in vLLM's tracker that name their release: a report without one ran the release of the nearest before it.
_DATED = (
    (2140, "0.2.5"), (2382, "0.2.7"), (4432, "0.4.0"), (4760, "0.4.1"), (5569, "0.5.0"), (6408, "0.5.1"),
    (6689, "0.5.3"), (8009, "0.5.5"), (10116, "0.6.3"), (10517, "0.6.4"), (12245, "0.6.6"), (12569, "0.7.0"),
    (13074, "0.7.2"), (14400, "0.7.3"), (15360, "0.8.1"), (16152, "0.8.3"), (16692, "0.8.4"), (17395, "0.8.5"),
    (26788, "0.11.0"), (31273, "0.13.0"), (38516, "0.18.0"), (39133, "0.19.0"), (41695, "0.20.1"), (44376, "0.22.0"),
    (57475, "0.29.0"),
)  # fmt: skip


def missing(record: Record) -> str | None:
    """What a record lacks to be a question, or None."""
    if not record.get("model"):
        return "the model is not named"
    if not record.get("gpu") and not record.get("total_gpu_memory_gib"):
        return "the GPU is not named"
    if not record.get("tensor_parallel_size") and not record.get("gpu_count") and _several(record):
        return "the number of GPUs is not named, and there were several"
    if version_of(record) is None:
        return "the release is not named"
    if record["verdict"] not in ("starts",) and not record["verdict"].endswith(("oom", "blocks", "len")):
        return f"no outcome: {record['verdict']}"
    return None


def _several(record: Record) -> bool:
    """Whether the record speaks of more workers than one, or of machines."""
    text = f"{record.get('quote')} {record.get('notes')}"
    return re.search(r"multi-worker|\bworkers\b|\branks\b|\bnodes\b", text) is not None


# What makes two records runs of one set-up, and what they may complete each other by.
_SAME = ("source", "engine_version", "model", "quantization", "gpu", "gpu_count", "tensor_parallel_size",
         "pipeline_parallel_size", "data_parallel_size")  # fmt: skip
_SHARED = ("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "kv_cache_dtype", "total_gpu_memory_gib")


def completed(record: Record, records: list[Record]) -> Record:
    """The record with what it leaves out taken from its author's other runs. A run of no named build has none."""
    if not record.get("engine_version"):
        return record
    others = [each for each in records if each is not record and all(each.get(k) == record.get(k) for k in _SAME)]
    found = {key: {each[key] for each in others if each.get(key) is not None} for key in _SHARED}
    taken = {key: values.pop() for key, values in found.items() if record.get(key) is None and len(values) == 1}
    return {**record, **taken}


def version_of(record: Record) -> str | None:
    """The first release that the record names; a nightly build means the newest."""
    match = re.search(r"\d+\.\d+(?:\.\d+)?", record.get("engine_version") or "")
    if match:
        return match[0]
    thread = re.fullmatch(r"vllm-project/vllm#(\d+)", record.get("source") or "")
    return next((release for number, release in reversed(_DATED) if thread and int(thread[1]) >= number), None)


def is_offline(record: Record) -> bool:
    """Whether the author called vLLM's LLM class, which takes larger steps: `30_000` is how Python writes a number."""
    return re.search(r"=\d+_\d{3}\b", record.get("quote") or "") is not None


def layout_of(record: Record) -> ParallelLayout:
    """The ranks that were named; GPUs without a word on ranks are tensor-parallel, as vLLM is usually started."""
    tensor, pipeline = record.get("tensor_parallel_size"), record.get("pipeline_parallel_size") or 1
    if tensor is None:
        tensor = max(1, (record.get("gpu_count") or 1) // pipeline)
    expert = re.search(r"\benable[_-]expert[_-]parallel\b", record.get("quote") or "") is not None
    return ParallelLayout(tensor=tensor, pipeline=pipeline, data=record.get("data_parallel_size") or 1, expert=expert)


def beside(record: Record) -> tuple[float | None, int]:
    """What else is on the card: the part of it that is left, and how many engines like this one there are."""
    text = record.get("other_processes") or ""
    part = re.search(r"(\d+) ?%", text)
    if part:
        return 1 - int(part[1]) / 100, 1
    return None, 2 if re.search(r"second .*server", text) else 1


def gpu_name(record: Record) -> str | None:
    """The GPU's name without remarks behind it."""
    return re.split(r"[,;(/]", record["gpu"])[0].strip() if record.get("gpu") else None


def model_name(record: Record, configs: Path | None) -> str:
    """The folder of the model's config where there is one, else its name, without the bits of a scheme behind it."""
    folder = configs / record["model"].replace("/", "__") / "config.json" if configs else None
    return str(folder) if folder and folder.is_file() else re.sub(r"\s+\d[ -]?bit$", "", record["model"])


def _cap(record: Record) -> int | None:
    """The length that a run which started is said to be capped at."""
    return record.get("max_len_estimated") if record["verdict"] == "starts" else None


def answer(record: Record, configs: Path | None) -> dict[str, Any]:
    """Ask memplan, and return its verdict beside the real one. Raises: MemplanError when it cannot answer."""
    memory = record.get("total_gpu_memory_gib")
    free = record.get("free_gpu_memory_gib")
    device = parse_devices(
        gpu_name(record), memory=f"{memory}GiB" if memory else None, free=f"{free}GiB" if free else None
    )[0]
    spec = pipeline.load_model(model_name(record, configs), revision=None, offline=True, introspect="auto")
    scheme = record.get("quantization")
    if scheme and not spec.quantization:
        spec = pipeline.with_scheme(spec, scheme)
    left, engines = beside(record)
    kv_dtype = (record.get("kv_cache_dtype") or "auto").split()[0]
    settings = ServingSettings(
        layout=layout_of(record),
        workload=Workload(context_tokens=record.get("max_model_len") or _cap(record)),
        dtype=record.get("dtype"),
        quant=scheme if spec.quantization == scheme else None,
        kv_dtype=None if kv_dtype == "auto" else kv_dtype,
        max_num_seqs=record.get("max_num_seqs"),
        max_num_batched_tokens=record.get("max_num_batched_tokens"),
        gpu_memory_utilization=record.get("gpu_memory_utilization"),
        eager=record.get("enforce_eager") or None,
        offline_batch=is_offline(record),
        gpu_free_bytes=round(device.gpu.memory_bytes * left) if left is not None else device.free_bytes,
    )
    engine = parse_engine((record.get("engine") or "vllm").split()[0])[0]
    budget = pipeline.answer(
        pipeline.Question(
            spec=spec,
            base_spec=spec,
            gpu=device.gpu,
            settings=settings,
            engine=engine,
            version=version_of(record),
            sharing=engines,
            with_remedies=False,
        )
    )
    return {
        "verdict": budget.verdict,
        "kv_gib": round((budget.extra.get("kv_available_bytes") or budget.group_bytes("kv_cache")) / GIB, 2),
        "needed_gib": round(budget.kv.needed_bytes / GIB, 2),
        "reasons": list(budget.reasons),
    }


def judge(record: Record, configs: Path | None) -> dict[str, Any]:
    """One row: what was asked, what happened, what memplan says, and how they compare."""
    row: dict[str, Any] = {"id": record["id"], "model": record.get("model"), "real": record["verdict"]}
    if lack := missing(record):
        return {**row, "unanswerable": lack}
    try:
        row |= answer(record, configs)
    except MemplanError as error:
        return {**row, "unanswerable": f"{error.message}"}
    starts = record["verdict"] == "starts"
    row["false_fits"] = not starts and row["verdict"] == "fits"
    row["false_does_not_fit"] = starts and row["verdict"] == "does_not_fit"
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts and shares over the rows that were answered."""
    answered = [row for row in rows if "unanswerable" not in row]
    count = len(answered) or 1

    def share(found: int) -> dict[str, Any]:
        return {"n": found, "share": round(found / count, 4)}

    return {
        "records": len(rows),
        "answered": len(answered),
        "unanswerable": {row["id"]: row["unanswerable"] for row in rows if "unanswerable" in row},
        "false_fits": share(sum(row["false_fits"] for row in answered)),
        "false_does_not_fit": share(sum(row["false_does_not_fit"] for row in answered)),
        "tight": share(sum(row["verdict"] == "tight" for row in answered)),
    }


def main() -> int:
    """Score a file of records and print the table or the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--configs", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lines = options.records.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    rows = [judge(completed(record, records), options.configs) for record in records]
    if options.json:
        print(json.dumps({"summary": summary(rows), "rows": rows}))
        return 0
    for row in rows:
        if "unanswerable" in row:
            print(f"{row['id']:6} {str(row['model'])[:44]:44} {row['real']:22} not asked: {row['unanswerable']}")
            continue
        mark = "FALSE" if row["false_fits"] or row["false_does_not_fit"] else ""
        print(
            f"{row['id']:6} {row['model'][:44]:44} {row['real']:22} {row['verdict']:13} {mark:6}"
            f" KV {row['kv_gib']} needs {row['needed_gib']}"
        )
    print(json.dumps(summary(rows), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
