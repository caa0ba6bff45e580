"""Keep what vLLM's planner said, in a form that a test can read without vLLM.

    python benchmarks/vllm/record_kv_oracle.py ANSWERS.json... > tests/engines/vllm/kv_groups_recorded.json

ANSWERS are what kv_oracle.py prints with --json, one file per release and GPU. Kept are models of the catalogue, for
the longest context and one size of cache memory: models with one kind of page at the newest release only, the others
at every release. Every point is a list: setting, context, blocks, tokens, concurrency, longest request, number of
groups, block sizes of the groups that are not recurrent states.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from kv_oracle import is_explained

from memplan.catalog.rules import parse_release
from memplan.errors import MemplanError
from memplan.pipeline import load_model

MEMORY_GIB = 20
OLDER_SETTINGS = (
    "tp1 auto",
    "tp2 auto",
    "tp1 fp8",
    "tp1 auto mtp1",
    "tp2 fp8 mtp1",
    "tp2 auto no-hybrid",
    "tp1 auto no-prefix",
)


def point(row: dict[str, Any]) -> list[object]:
    """One row as a list."""
    run = row["theirs"]["runs"][0]
    sizes = sorted(group["block_size"] for group in run["groups"] if group["kind"] != "MambaSpec")
    concurrency = round(run["concurrency"], 3)
    longest = run.get("longest")
    return [
        row["setting"], run["context"], run["blocks"], run["tokens"], concurrency, longest, len(run["groups"]), sizes
    ]  # fmt: skip


def is_kept(row: dict[str, Any], rows: list[dict[str, Any]], *, newest: bool) -> bool:
    """Whether a row is worth keeping."""
    if "theirs" not in row or row["memory"] != MEMORY_GIB or not row["theirs"]["runs"][0]["groups"]:
        return False
    same = [other for other in rows if other["model"] == row["model"] and other["setting"] == row["setting"]]
    if row["context"] != max(other.get("context", 0) for other in same):
        return False
    plain = all(len(other["theirs"]["layers"]) == 1 for other in same if "theirs" in other)
    latent = any("MLA" in layer["kind"] for layer in row["theirs"]["layers"])
    return newest or (row["setting"] in OLDER_SETTINGS and (latent or not plain))


def is_catalogued(name: str) -> bool:
    """Whether a test can load the model, with nothing that decides its cache's type."""
    try:
        return load_model(name, revision=None, offline=True, introspect="auto").kv_cache_scheme is None
    except MemplanError:
        return False


def main() -> int:
    """Merge the answers and print the record."""
    answers = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    answers.sort(key=lambda answer: parse_release(answer["version"]))
    kept: dict[str, dict[str, list[object]]] = {}
    for answer in answers:
        newest = answer is answers[-1]
        models: dict[str, list[object]] = {}
        for row in answer["rows"]:
            name = row["model"].replace("__", "/", 1)
            if is_explained(name, answer["version"]) or not is_catalogued(name):
                continue
            if is_kept(row, answer["rows"], newest=newest):
                models.setdefault(name, []).append(point(row))
        kept[f"{answer['version']} {answer.get('gpu', 'h100')}"] = models
    lines = []
    for version, models in kept.items():
        rows = ",\n".join(f"   {json.dumps(name)}: {json.dumps(points)}" for name, points in models.items())
        lines.append(f'  "{version}": {{\n{rows}\n  }}')
    print(f'{{\n "memory_gib": {MEMORY_GIB},\n "releases": {{\n' + ",\n".join(lines) + "\n }\n}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
