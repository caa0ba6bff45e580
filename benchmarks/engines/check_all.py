"""Puts what emit-config writes before every real reader that is installed here, and prints tables.

    python benchmarks/engines/check_all.py [--quick] [--verbose] [--record FILE]
        --vllm PYTHON ...          interpreters that have vLLM (the CPU build will do)
        --vllm-source DIR ...      unpacked wheels of other releases, for the first of those interpreters
        --serve                    start `vllm serve` from emitted files, with the interpreters that have a CPU build
        --sglang PYTHON            an interpreter that has SGLang
        --llama-server PROGRAM     a llama-server
        --transformers PYTHON      an interpreter with transformers, torch and accelerate
        --ollama "COMMAND"         reads the Modelfile named behind it: "ollama create checked -f"
        --surroundings             the validators of surroundings.py as well
        --compose-schema FILE      the schema of the Compose specification, for those

Where an option is left out, the interpreter that runs this and the PATH are looked at; what is not found is skipped,
and the table says so. `--record` keeps the tables as JSON, from which benchmarks/render_docs.py writes the pages.
Exits 1 when a reader refuses something.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import serving
import surroundings
from outcome import Row, table
from readers import by_table, llama_server, ollama, python_engine, transformers


def main() -> int:
    """Run every check that can be run."""
    asked = _options().parse_args()
    rows = engine_rows(asked)
    print("\n".join(table(rows)))
    around = surroundings.rows(asked.compose_schema, is_verbose=asked.verbose) if asked.surroundings else []
    if around:
        print("\n" + "\n".join(table(around)))
    runs = serving_runs(asked) if asked.serve else []
    if runs:
        print("\n" + "\n".join(serving.table(runs)))
    if asked.record:
        kept = {"engines": rows, "surroundings": around, "serving": runs}
        text = json.dumps({name: [asdict(one) for one in found] for name, found in kept.items()}, indent=1)
        asked.record.write_text(text + "\n", encoding="utf-8")
    return 1 if any(row.refused for row in rows + around) or any(run.errors for run in runs) else 0


def engine_rows(asked: argparse.Namespace) -> list[Row]:
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
    return rows


def serving_runs(asked: argparse.Namespace) -> list[serving.Run]:
    """What vLLM says of its cache when it is started on a CPU."""
    found: list[serving.Run] = []
    for python in asked.vllm or [sys.executable]:
        version = serving.vllm_version(python)
        if version is None:
            print(f"serving: skipped: no CPU build of vLLM in {python}", file=sys.stderr)
            continue
        found += serving.all_runs(python, version, quick=asked.quick, verbose=asked.verbose)
    return found


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--vllm", action="append", default=[])
    parser.add_argument("--vllm-source", action="append", default=[])
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--sglang", default=sys.executable)
    parser.add_argument("--llama-server", default=shutil.which("llama-server"))
    parser.add_argument("--transformers")
    parser.add_argument("--ollama", default="ollama create checked -f")
    parser.add_argument("--surroundings", action="store_true")
    parser.add_argument("--compose-schema", type=Path)
    parser.add_argument("--record", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
