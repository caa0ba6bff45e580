"""Puts what emit-config writes before every real engine that is installed here, and prints a table.

    python benchmarks/engines/check_all.py [--quick] [--verbose]
        --vllm PYTHON ...       interpreters that have vLLM (the CPU build will do)
        --vllm-source DIR ...   unpacked wheels of other releases, for the first of those interpreters
        --sglang PYTHON         an interpreter that has SGLang
        --llama-server PROGRAM  a llama-server

Where an option is left out, the interpreter that runs this and the PATH are looked at; what is not found is skipped,
and the table says so. Exits 1 when an engine refuses something.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from emitting import Batch, write_all
from setups import setups

HERE = Path(__file__).parent
_PROBES = {"vllm": "import vllm; print(vllm.__version__)", "sglang": "import sglang.version as v; print(v.__version__)"}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    engine: str
    version: str
    checked: int
    failed: int
    refused: int
    remark: str


def main() -> int:
    """Run every check that can be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--vllm", action="append", default=[])
    parser.add_argument("--vllm-source", action="append", default=[])
    parser.add_argument("--sglang", default=sys.executable)
    parser.add_argument("--llama-server", default=shutil.which("llama-server"))
    asked = parser.parse_args()
    pythons = asked.vllm or [sys.executable]
    rows = [python_engine("vllm", python, None, asked) for python in pythons]
    rows += [python_engine("vllm", pythons[0], source, asked) for source in asked.vllm_source]
    rows.append(python_engine("sglang", asked.sglang, None, asked))
    rows += [llama_server(asked, name) for name in ("llama.cpp", "llama.cpp-presets")]
    print_table(rows)
    return 1 if any(row.failed for row in rows) else 0


def python_engine(engine: str, python: str, source: str | None, asked: argparse.Namespace) -> Row:
    """Check one engine that is a Python package, under its own interpreter."""
    environment = {**os.environ, "VLLM_TARGET_DEVICE": "cpu", **({"PYTHONPATH": source} if source else {})}
    probe = subprocess.run([python, "-c", _PROBES[engine]], capture_output=True, text=True, env=environment)
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["?"])[-1]
        return Row(engine, "-", 0, 0, 0, f"skipped: not in {python} ({last[:60]})")
    version = probe.stdout.strip().splitlines()[-1].partition("+")[0]
    with tempfile.TemporaryDirectory() as folder:
        batch = write_all(setups(quick=asked.quick), f"{engine}@{version}", engine, Path(folder))
        done = subprocess.run(
            [python, str(HERE / f"{engine}_worker.py")],
            input=json.dumps([asdict(one) for one in batch.written]),
            capture_output=True,
            text=True,
            env=environment,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
    errors = {answer["path"]: answer["errors"] for answer in answers}
    shallow = sum(answer.get("is_shallow", False) for answer in answers)
    if len(answers) < len(batch.written):
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        errors |= {one.path: [f"the engine died: {last[:200]}"] for one in batch.written if one.path not in errors}
    remark = "its parser, then its own checks of the config"
    remark += f" ({shallow} by the parser alone: the model's code or the draft is not here)" if shallow else ""
    return row(engine, version, batch, errors, remark, asked)


def llama_server(asked: argparse.Namespace, format_name: str) -> Row:
    """Check arguments and presets with llama-server itself, which reads them all before it prints its version."""
    program = asked.llama_server
    if not program or not shutil.which(program):
        return Row(format_name, "-", 0, 0, 0, "skipped: no llama-server here")
    probe = subprocess.run([program, "--version"], capture_output=True, text=True)
    errors: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        batch = write_all(llama_setups(asked.quick), "llama.cpp", format_name, Path(folder))
        for one in batch.written:
            arguments = ["--models-preset", one.path] if format_name.endswith("presets") else words(one.path)
            done = subprocess.run([program, *arguments, "--version"], capture_output=True, text=True)
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
            errors[one.path] = (lines or [f"exit code {done.returncode}"])[:1] if done.returncode else []
    lines = (probe.stdout + probe.stderr).splitlines()
    version = next((line.partition(":")[2].split()[0] for line in lines if line.startswith("version:")), "?")
    return row(format_name, version, batch, errors, "its own parser", asked)


def llama_setups(quick: bool) -> list[dict[str, object]]:
    """The setups that llama.cpp has words for: models, cards, lengths, slots and mixes."""
    kept = ("model", "gpu", "context", "concurrency")
    found: list[dict[str, object]] = []
    for number, options in enumerate(setups(quick=quick)):
        one = {name: value for name, value in options.items() if name in kept}
        one["quant"] = ("gguf:q4_k_m", "gguf:q8_0", "gguf:q5_k_m")[number % 3]
        found.append(one)
    return found


def words(path: str) -> list[str]:
    """The arguments behind `exec llama-server` in a script."""
    import shlex

    text = Path(path).read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("exec "))
    return shlex.split(line)[2:]


def row(
    name: str, version: str, batch: Batch, errors: dict[str, list[str]], remark: str, asked: argparse.Namespace
) -> Row:
    """Count, and print what is wrong."""
    failed = [one for one in batch.written if errors[one.path]]
    for one in failed:
        print(f"{name} {version}: {one.name}\n    {'; '.join(errors[one.path])}", file=sys.stderr)
    if asked.verbose:
        for setup, reason in batch.refused:
            print(f"{name} {version}: not written: {setup}\n    {reason}", file=sys.stderr)
    return Row(name, version, len(batch.written), len(failed), len(batch.refused), remark)


def print_table(rows: list[Row]) -> None:
    """Print Markdown."""
    print("| format | engine's release | files put before it | refused by it | not written by memplan | how |")
    print("|---|---|---:|---:|---:|---|")
    for each in rows:
        print(f"| {each.engine} | {each.version} | {each.checked} | {each.failed} | {each.refused} | {each.remark} |")


if __name__ == "__main__":
    sys.exit(main())
