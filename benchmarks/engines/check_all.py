"""Puts what emit-config writes before every real reader that is installed here, and prints tables.

    python benchmarks/engines/check_all.py [--quick] [--verbose] [--record FILE] [--parts engines,surroundings,serving]
        --vllm PYTHON ...          interpreters that have vLLM (the CPU build will do, and is started as well)
        --vllm-source DIR ...      unpacked wheels of other releases, for the first of those interpreters
        --sglang PYTHON            an interpreter that has SGLang
        --llama-server PROGRAM     a llama-server
        --transformers PYTHON      an interpreter with transformers, torch and accelerate
        --ollama "COMMAND"         reads the Modelfile named behind it: "ollama create checked -f"
        --compose-schema FILE      the schema of the Compose specification

Where an option is left out, the interpreter that runs this and the PATH are looked at; what is not found is skipped,
and the table says so. The parts are the engines' own readers, the validators of surroundings.py, and servers that
serving.py starts; `--quick` takes one setup in seven and one server. `--record` keeps the tables of the parts as JSON,
from which benchmarks/render_docs.py writes the pages. Exits 1 when a reader refuses something.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import serving
import surroundings
from outcome import Row, table
from readers import by_table, llama_server, ollama, python_engine, transformers


def main() -> int:
    """Run every check that can be run."""
    asked = _options().parse_args()
    found: dict[str, list[Any]] = {}
    for part in asked.parts.split(","):
        found[part], lines = _PARTS[part](asked)
        print("\n".join([*lines, ""]) if found[part] else "", flush=True)
    if asked.record:
        kept = json.loads(asked.record.read_text(encoding="utf-8")) if asked.record.exists() else {}
        kept |= {part: [asdict(one) for one in rows] for part, rows in found.items()}
        asked.record.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    rows = [one for part in ("engines", "surroundings") for one in found.get(part, ())]
    return 1 if any(row.refused for row in rows) or any(run.errors for run in found.get("serving", ())) else 0


def engines(asked: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """What the engines' own readers say."""
    how = {"quick": asked.quick, "is_verbose": asked.verbose}
    pythons = asked.vllm or [sys.executable]
    rows = [python_engine("vllm", python, None, **how) for python in pythons]
    rows += [python_engine("vllm", pythons[0], source, **how) for source in asked.vllm_source]
    rows.append(python_engine("sglang", asked.sglang, None, **how))
    rows += [llama_server(asked.llama_server, name, **how) for name in ("llama.cpp", "llama.cpp-presets")]
    rows.append(ollama(asked.ollama, **how))
    rows.append(transformers(asked.transformers, **how))
    for release in ("1.0.0", "1.3.0"):
        rows.append(by_table("tensorrt-llm", f"tensorrt-llm@{release}", release, **how))
    rows.append(by_table("tgi", "vllm", "3.3.7", **how))
    return rows, table(rows)


def around(asked: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """What the validators of the files around an engine say."""
    rows = surroundings.rows(asked.compose_schema, is_verbose=asked.verbose)
    return rows, table(rows)


def started(asked: argparse.Namespace) -> tuple[list[serving.Run], list[str]]:
    """What vLLM says of its cache when it is started on a CPU."""
    found: list[serving.Run] = []
    for python in asked.vllm or [sys.executable]:
        version = serving.vllm_version(python)
        if version is None:
            print(f"serving: skipped: no CPU build of vLLM in {python}", file=sys.stderr)
            continue
        found += serving.all_runs(python, version, quick=asked.quick, verbose=asked.verbose)
    return found, serving.table(found)


_PARTS: Mapping[str, Callable[[argparse.Namespace], tuple[list[Any], list[str]]]] = {
    "engines": engines,
    "surroundings": around,
    "serving": started,
}


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(_PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--vllm", action="append", default=[])
    parser.add_argument("--vllm-source", action="append", default=[])
    parser.add_argument("--sglang", default=sys.executable)
    parser.add_argument("--llama-server", default=shutil.which("llama-server"))
    parser.add_argument("--transformers")
    parser.add_argument("--ollama", default="ollama create checked -f")
    parser.add_argument("--compose-schema", type=Path)
    parser.add_argument("--record", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
