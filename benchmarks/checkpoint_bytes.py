"""Compare the checkpoint bytes that a config implies with what published indexes and headers add up to.

    python benchmarks/checkpoint_bytes.py CONFIGS_FOLDER [--records models.jsonl] [--only PART ...] [--json]

CONFIGS_FOLDER holds one folder for each model with its config.json, and where it was published its
hf_quant_config.json and model.safetensors.index.json. A record gives `config` (the folder's name) and
`total_size_bytes`, for models without an index. The milliseconds are what reading and applying the quantization
config took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from memplan.budget.storage import checkpoint_bytes
from memplan.errors import MemplanError
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.quantized import apply_quantization, find_quantization
from memplan.units import format_gib


def read_json(path: Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def published_bytes(folder: Path, records: dict[str, int]) -> int | None:
    """What the index's metadata says all tensors come to, else what the record of the model says."""
    index = read_json(folder / "model.safetensors.index.json")
    size_bytes = ((index or {}).get("metadata") or {}).get("total_size")
    return size_bytes or records.get(folder.name)


def compare(folder: Path, records: dict[str, int]) -> dict | None:
    """One row of the table; None for a plain checkpoint whose size nobody published."""
    config = read_json(folder / "config.json") or {}
    hf_quant = read_json(folder / "hf_quant_config.json")
    quantization = find_quantization(config)
    truth_bytes = published_bytes(folder, records)
    if not (quantization or hf_quant or truth_bytes):
        return None
    row: dict = {"model": folder.name, "published_bytes": truth_bytes}
    try:
        spec = build_spec(Config(config), folder.name)
        start = time.perf_counter()
        spec = apply_quantization(spec, quantization, hf_quant_config=hf_quant, config=config)
        row["read_ms"] = 1e3 * (time.perf_counter() - start)
    except MemplanError as error:
        return {**row, "error": error.message}
    size_bytes = checkpoint_bytes(spec)
    row |= {"scheme": spec.quantization, "bytes": size_bytes, "parameters": spec.parameters}
    row["difference_bytes"] = size_bytes - truth_bytes if truth_bytes else None
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    lines = asked.records.read_text().splitlines() if asked.records else []
    known = [json.loads(line) for line in lines]
    records = {each["config"]: each["total_size_bytes"] for each in known if each.get("total_size_bytes")}
    folders = sorted(path.parent for path in asked.configs.glob("*/config.json"))
    if asked.only:
        folders = [folder for folder in folders if any(part in folder.name for part in asked.only)]
    rows = [row for folder in folders if (row := compare(folder, records))]
    if asked.json:
        json.dump(rows, sys.stdout, indent=1)
        return 0
    for row in rows:
        if "error" in row:
            print(f"{row['model']:58}  {row['error']}")
            continue
        difference = row["difference_bytes"]
        verdict = "" if difference is None else "exact" if difference == 0 else f"{difference:+,} bytes"
        size = format_gib(row["bytes"], digits=3)
        print(f"{row['model']:58} {row['scheme'] or 'plain':20} {size:>14} {row['read_ms']:7.2f} ms  {verdict}")
    exact = sum(row.get("difference_bytes") == 0 for row in rows)
    known_sizes = sum(row.get("difference_bytes") is not None for row in rows)
    print(f"{len(rows)} models, {known_sizes} with a published size, {exact} of them exact to the byte")
    return 0


if __name__ == "__main__":
    sys.exit(main())
