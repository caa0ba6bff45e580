"""Ask the tables of what starts where about runs that did start: whatever they refuse is a false refusal.

    python benchmarks/servable/score.py vllm|sglang RECORDS.jsonl [...] [--configs DIR] [--json]

A record is one JSON object a line, as benchmarks/vllm/records.py and benchmarks/sglang/score.py take them. The engine's
own files of public runs (benchmarks/vllm/public_runs_*.jsonl) have the same form. Records whose model, GPU or setting
memplan does not take are counted apart.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from memplan.catalog.servable import support

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
_PLAIN_CACHES = (None, "auto", "bfloat16", "float16")


def question_reader(engine: str) -> Callable[[Record, Path], Any]:
    """The function that turns a record of an engine into a question, from that engine's own benchmark."""
    sys.path.insert(0, str(ROOT / engine))
    module = importlib.import_module("records" if engine == "vllm" else "score")
    reader: Callable[[Record, Path], Any] = module.question if engine == "vllm" else module.question_of
    return reader


def refusal(engine: str, record: Record, asked: Any) -> str | None:
    """Why the tables refuse a run, or None."""
    ranks = record.get("ep") or 0  # true, or a number of ranks
    layout = replace(asked.settings.layout, expert=ranks is True or ranks > 1)
    kv_dtype = asked.settings.kv_dtype
    cache = None if kv_dtype in _PLAIN_CACHES else kv_dtype
    version = asked.version if engine == "sglang" else record.get("version")
    found = support(asked.spec, None, cache, asked.gpu, layout, engine, version)
    return None if found.runs else found.reason


def main() -> int:
    """Print what was refused, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=("vllm", "sglang"))
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--configs", type=Path, default=Path())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    refused: list[dict[str, str]] = []
    read = question_reader(options.engine)
    for line in (line for path in options.records for line in path.read_text(encoding="utf-8").splitlines() if line):
        record = json.loads(line)
        try:
            reason = refusal(options.engine, record, read(record, options.configs))
        except Exception:  # whatever its reader or memplan does not take
            counts["not asked"] += 1
            continue
        counts["asked"] += 1
        if reason:
            named = {name: str(record.get(name)) for name in ("model", "gpu_key", "version")}
            refused.append({**named, "reason": reason})
    summary = {**counts, "false_refusals": len(refused)}
    if options.json:
        print(json.dumps({"summary": summary, "refused": refused}))
        return 0
    for each in refused:
        print(f"{each['model'][:48]:48} {each['gpu_key']:12} {each['version']:10} {each['reason']}")
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
