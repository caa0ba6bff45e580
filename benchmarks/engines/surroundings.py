"""Have the real validators read what stands around an engine: manifests, Compose files, units, rules, scripts.

    python benchmarks/engines/surroundings.py [--compose-schema FILE]

Prints how many files each validator read and took, over the setups below; exits 1 when one was refused. A validator
that is not on the PATH is named and left out: `kubernetes-validate` (PyPI), `promtool` (Debian's prometheus),
`systemd-analyze`, `bash`. The schema of Compose files is schema/compose-spec.json of the Compose specification.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import yaml

MEMPLAN = [sys.executable, "-m", "memplan"]
SETUPS = (
    "llama-8b --gpu l4 --context 8k --concurrency 4",
    "llama-8b --gpu a100-80g --context 32k --concurrency 16",
    "llama-70b --gpu h100x4 --context 16k --concurrency 8",
    "qwen3-30b-a3b --gpu h200 --context 32k --concurrency 8",
    "qwen2.5-vl-7b --gpu l40s --context 16k --concurrency 4",
    "gpt-oss-20b --gpu h100 --context 32k --concurrency 32",
)
ENGINES = (
    "vllm",
    "vllm@0.8.5",
    "vllm@0.10.2",
    "vllm@0.16.0",
    "sglang",
    "sglang@0.5.10",
    "tensorrt-llm",
    "llama.cpp",
)
FORMATS = {
    "kubernetes": ("kubernetes.yaml",),
    "autoscaling": ("hpa.yaml",),
    "compose": ("compose.yaml",),
    "alerts": ("alerts.yaml",),
    "systemd": ("unit.service",),
    "docker": ("docker.sh",),
    "load-test": ("load-test.sh",),
    "grafana": ("dashboard.json",),
    "limits": ("limits.yaml",),
}


def main() -> int:
    """Write every setup in every format, validate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compose-schema", type=Path)
    schema = parser.parse_args().compose_schema
    validators = dict(_validators(schema))
    taken: dict[str, int] = dict.fromkeys(validators, 0)
    bad: list[str] = []
    unwritten: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for setup, engine, name in product(SETUPS, ENGINES, FORMATS):
            if name not in validators:
                continue
            text, said = _written(setup, engine, name)
            if text is None:
                unwritten[said] = unwritten.get(said, 0) + 1
                continue
            path = Path(folder) / FORMATS[name][0]
            path.write_text(text)
            problem = validators[name](path)
            taken[name] += problem is None
            bad += [f"{setup} {engine} {name}: {problem}"] if problem else []
    for name, count in taken.items():
        wrong = sum(f" {name}: " in line for line in bad)
        print(f"{name:12} {count + wrong:4} written {count:4} taken by {validators[name].__doc__}")
    for said, count in sorted(unwritten.items()):
        print(f"not written  {count:4} {said}")
    print("\n".join(bad))
    return 1 if bad else 0


def _written(setup: str, engine: str, name: str) -> tuple[str | None, str]:
    """The last file of a format, as the command writes it into a directory; None and its error when it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*MEMPLAN, "emit-config", *setup.split(), "--engine", engine, "--format", name, "--offline"]
        done = subprocess.run([*command, "--output", folder], capture_output=True, text=True, check=False)
        if done.returncode:
            last = next((line for line in done.stderr.splitlines() if line.startswith("error:")), done.stderr[-200:])
            return None, f"{engine}: {last}"
        files = sorted(Path(folder).iterdir())
        wanted = FORMATS[name][0]
        chosen = [file for file in files if file.name == wanted] or [
            file for file in files if file.suffix == Path(wanted).suffix
        ]
        return chosen[0].read_text(), ""


def _validators(schema: Path | None) -> Iterator[tuple[str, Callable[[Path], str | None]]]:
    programs = (
        ("kubernetes", ["kubernetes-validate", "--strict"], "kubernetes-validate --strict"),
        ("autoscaling", ["kubernetes-validate", "--strict"], "kubernetes-validate --strict"),
        ("alerts", ["promtool", "check", "rules"], "promtool check rules"),
        ("systemd", ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"], "systemd-analyze verify"),
        ("docker", ["bash", "-n"], "bash -n"),
        ("load-test", ["bash", "-n"], "bash -n"),
    )
    for name, command, title in programs:
        if shutil.which(command[0]) is None:
            print(f"{name}: {command[0]} is not installed", file=sys.stderr)
            continue
        yield name, _program(command, title)
    if schema:
        yield "compose", _compose(json.loads(schema.read_text()))
    yield "grafana", _parsed(json.loads, "json")
    yield "limits", _parsed(yaml.safe_load, "yaml.safe_load")


def _program(command: list[str], title: str) -> Callable[[Path], str | None]:
    def check(path: Path) -> str | None:
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        return None if done.returncode == 0 else (done.stdout + done.stderr)[-400:]

    check.__doc__ = title
    return check


def _compose(schema: dict[str, object]) -> Callable[[Path], str | None]:
    import jsonschema

    def check(path: Path) -> str | None:
        errors = jsonschema.Draft7Validator(schema).iter_errors(yaml.safe_load(path.read_text()))
        return next((error.message[:300] for error in errors), None)

    check.__doc__ = "the schema of the Compose specification"
    return check


def _parsed(parse: Callable[[str], object], title: str) -> Callable[[Path], str | None]:
    def check(path: Path) -> str | None:
        parse(path.read_text())
        return None

    check.__doc__ = title
    return check


if __name__ == "__main__":
    sys.exit(main())
