"""Compare the parameters and cache bytes that configs imply with exact records.

    python benchmarks/parameters.py RECORDS.jsonl CONFIGS_FOLDER [--json]

A record gives `config` (a folder of CONFIGS_FOLDER), and where they are known `params_exact`,
`kv_bytes_per_token_fp16`, `kv_growing_bytes_per_token_fp16` and `recurrent_state_elems_per_sequence`. A folder holds a
config.json, or the parts of a diffusion pipeline: a model_index.json beside `unet__config.json` and its like, which is
how the records' configs are kept; memplan itself reads the real layout with a directory for each part.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from memplan.domain.attention import Cache, ChunkedLocal, FullAttention, LatentAttention, LinearState, SlidingWindow
from memplan.domain.model import ModelSpec
from memplan.errors import MemplanError, SourceNotFound
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.families.diffusion import build_pipeline

CHECKED = {
    "parameters": "params_exact",
    "kv_bytes_per_token": "kv_bytes_per_token_fp16",
    "kv_growing_bytes_per_token": "kv_growing_bytes_per_token_fp16",
    "state_elements": "recurrent_state_elems_per_sequence",
}


def read_model(folder: Path) -> ModelSpec:
    """The ModelSpec of a folder of configs."""
    if (path := folder / "config.json").exists():
        return build_spec(Config(json.loads(path.read_text())), folder.name)
    if not (index := folder / "model_index.json").exists():
        raise SourceNotFound(f"no config in `{folder}`")
    parts = {path.name.partition("__")[0]: json.loads(path.read_text()) for path in folder.glob("*__config.json")}
    return build_pipeline(json.loads(index.read_text()), parts, folder.name)


def cache_bytes(cache: Cache) -> tuple[int, int]:
    """What a token leaves behind at 16 bit, in all, and in a cache that grows with the context."""
    if isinstance(cache, LatentAttention):
        size_bytes = 2 * (cache.latent_width + cache.rope_width)
        return size_bytes, size_bytes
    if isinstance(cache, (FullAttention, SlidingWindow, ChunkedLocal)):
        size_bytes = 2 * cache.num_kv_heads * (cache.key_width + cache.value_width)
        return size_bytes, size_bytes if isinstance(cache, FullAttention) else 0
    return 0, 0


def state_elements(cache: Cache) -> int:
    """What a recurrent layer keeps for a sequence in transformers, whose convolutions keep one input more."""
    if not isinstance(cache, LinearState):
        return 0
    kernel = cache.conv_kernel
    return cache.state_elements + (cache.conv_elements * kernel // (kernel - 1) if kernel > 1 else cache.conv_elements)


def measure(folder: Path) -> dict[str, object]:
    """What a folder's configs imply, and how long that took; the error when they are refused."""
    started = time.perf_counter()
    try:
        spec = read_model(folder)
    except MemplanError as error:
        return {"error": error.message}
    took_ms = 1e3 * (time.perf_counter() - started)
    caches = [cache for layer in spec.layers for cache in layer.caches]
    kept = [cache_bytes(cache) for cache in caches]
    return {
        "parameters": spec.parameters,
        "kv_bytes_per_token": sum(all_bytes for all_bytes, _ in kept),
        "kv_growing_bytes_per_token": sum(growing for _, growing in kept),
        "state_elements": sum(state_elements(cache) for cache in caches),
        "took_ms": took_ms,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("configs", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    records = [json.loads(line) for line in asked.records.read_text().splitlines() if line.strip()]
    rows = []
    for record in records:
        found = measure(asked.configs / record["config"])
        wrong = [
            name for name, key in CHECKED.items() if record.get(key) is not None and found.get(name) != record.get(key)
        ]
        known = sum(record.get(key) is not None for key in CHECKED.values())
        rows.append({"model": record["model"], **found, "known": known, "wrong": wrong})
    summary = {
        "models": len(rows),
        "refused": sum("error" in row for row in rows),
        "facts": sum(row["known"] for row in rows),
        "wrong": sum(len(row["wrong"]) for row in rows),
        "median_ms": sorted(row.get("took_ms", 0.0) for row in rows)[len(rows) // 2] if rows else None,
    }
    if asked.json:
        json.dump({"summary": summary, "rows": rows}, sys.stdout, indent=1)
        return 0
    for row in rows:
        if row["wrong"] or "error" in row:
            print(f"{row['model']:58}  {row.get('error') or ', '.join(row['wrong'])}")
    print(", ".join(f"{name} {value}" for name, value in summary.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
