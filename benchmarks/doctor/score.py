"""Score `memplan doctor` on real logs and tracebacks: is the cause that it names the one that the thread ended on?

    python benchmarks/doctor/score.py RECORDS [RECORDS ...] [--json] [--text-only]

RECORDS is a .yaml file of `{id, source, cause, log}` (tests/doctor/cases.yaml), or a .jsonl file of records with a
`quote` and a `verdict`, as benchmarks/verdicts/score.py reads them. The text is given to the doctor as a person would
paste it. What else a record knows of the run (model, GPU, options) is given as the command that was run, and as --gpu;
--text-only leaves that out. Exit 0 whatever the score.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memplan.cli.doctor_budget import known_model
from memplan.cli.doctor_sources import log_report
from memplan.errors import MemplanError

Record = dict[str, Any]
_OPTIONS = (
    ("--tensor-parallel-size", "tensor_parallel_size"),
    ("--pipeline-parallel-size", "pipeline_parallel_size"),
    ("--max-model-len", "max_model_len"),
    ("--max-num-seqs", "max_num_seqs"),
    ("--max-num-batched-tokens", "max_num_batched_tokens"),
    ("--gpu-memory-utilization", "gpu_memory_utilization"),
    ("--quantization", "quantization"),
    ("--kv-cache-dtype", "kv_cache_dtype"),
)


def read_records(path: Path) -> Iterator[Record]:
    """Every record, as id, source, cause, text, and what else is known of the run."""
    if path.suffix in (".yaml", ".yml"):
        import yaml

        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            yield {
                "id": entry["id"],
                "source": entry["source"],
                "cause": entry["cause"],
                "text": entry["log"],
                "known": {},
            }
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        yield {
            "id": record.get("id"),
            "source": record.get("source"),
            "cause": record["verdict"],
            "text": record.get("quote") or "",
            "known": record,
        }


def command_of(known: Record) -> str:
    """The command that was run, as far as the record has it; nothing without a model."""
    if not known.get("model") or not str(known.get("engine", "")).startswith("vllm"):
        return ""
    words = [f"vllm serve {known['model']}"]
    words += [f"{flag} {known[name]}" for flag, name in _OPTIONS if known.get(name) is not None]
    return " ".join(words) + (" --enforce-eager" if known.get("enforce_eager") else "")


def diagnose(record: Record, *, text_only: bool) -> tuple[str | None, str]:
    """The cause that is named, and its sentence."""
    known: Record = {} if text_only else record["known"]
    text = "\n".join(part for part in (command_of(known), record["text"]) if part)
    given: Record = {"offline": True}
    if engine := str(known.get("engine") or "").split(" ")[0]:
        release = re.match(r"\d+\.\d+(?:\.\d+)?", str(known.get("engine_version") or ""))
        given["engine"] = f"{engine}@{release[0]}" if release else engine
    if known_model(str(known.get("model") or "")):
        given["model"] = known["model"]
    if known.get("total_gpu_memory_gib"):
        given["gpu_memory"] = f"{known['total_gpu_memory_gib']}GiB"
    elif known.get("gpu"):
        given["gpu"] = str(known["gpu"])
    try:
        report = log_report(iter([text.encode()]), given)
    except MemplanError as error:
        return None, error.message
    return (report.main.cause, report.main.sentence) if report.main else (None, "nothing was found")


def score(records: list[Record], *, text_only: bool) -> dict[str, Any]:
    """The summary: how many are right, by cause, and every miss."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    misses = []
    for record in records:
        cause, sentence = diagnose(record, text_only=text_only)
        asked[record["cause"]] += 1
        if cause == record["cause"]:
            right[record["cause"]] += 1
        else:
            misses.append(
                {
                    "id": record["id"],
                    "source": record["source"],
                    "is": record["cause"],
                    "named": cause,
                    "said": sentence,
                }
            )
    return {
        "schema": "memplan.doctor-score/1",
        "records": len(records),
        "right": sum(right.values()),
        "share": round(sum(right.values()) / len(records), 4) if records else None,
        "by_cause": {cause: {"records": asked[cause], "right": right[cause]} for cause in sorted(asked)},
        "misses": misses,
    }


def main() -> None:
    """Print the score as a table, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--text-only", action="store_true")
    arguments = parser.parse_args()
    records = [record for path in arguments.records for record in read_records(path)]
    summary = score(records, text_only=arguments.text_only)
    if arguments.json:
        print(json.dumps(summary, indent=2))
        return
    print(f"{summary['right']} of {summary['records']} causes are right")
    for cause, figures in summary["by_cause"].items():
        print(f"  {cause:32} {figures['right']:3} of {figures['records']}")
    for miss in summary["misses"]:
        print(f"miss {miss['id']} ({miss['source']}): is {miss['is']}, named {miss['named']}: {miss['said']}")


if __name__ == "__main__":
    main()
