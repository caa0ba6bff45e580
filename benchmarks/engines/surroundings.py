"""Has the real validators read what stands around an engine: manifests, Compose files, units, rules, scripts.

    python benchmarks/engines/surroundings.py [--compose-schema FILE]

Prints how many files each validator read and took, over the setups below; exits 1 when one was refused. A validator
that is not on the PATH is skipped: `kubernetes-validate` (PyPI), `promtool` (Debian's prometheus), `systemd-analyze`,
`bash`. The schema of Compose files is schema/compose-spec.json of the Compose specification. KEDA's ScaledObject and
Grafana's dashboards have no validator that runs without a cluster or a server.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from emitting import Batch, Written, emitted
from outcome import Row, row, skipped, table

from memplan.errors import MemplanError

SETUPS: tuple[Mapping[str, Any], ...] = (
    {"model": "llama-8b", "gpu": "l4", "context": "8k", "concurrency": "2"},
    {"model": "llama-8b", "gpu": "a100-80g", "context": "32k", "concurrency": "8"},
    {"model": "llama-70b", "gpu": "h100x4", "context": "16k", "concurrency": "8"},
    {"model": "qwen3-30b-a3b", "gpu": "h200", "context": "32k", "concurrency": "8"},
    {"model": "qwen2.5-vl-7b", "gpu": "l40s", "context": "16k", "concurrency": "4"},
    {"model": "gpt-oss-20b", "gpu": "h100", "context": "32k", "concurrency": "8"},
)
ENGINES = (
    *("vllm", "vllm@0.8.5", "vllm@0.10.2", "vllm@0.16.0"),
    *("sglang", "sglang@0.5.10", "tensorrt-llm", "llama.cpp"),
)
Reader = Callable[[Path], str | None]


@dataclass(frozen=True)
class Validator:
    """What reads one format: the suffix of the file that it reads among those of the format, and what it is called.

    `read` is None where it is not installed.
    """

    format: str
    suffix: str
    title: str
    read: Reader | None
    how: str = "the real one"


def rows(compose_schema: Path | None, *, is_verbose: bool = False) -> list[Row]:
    """Write every setup in every format, validate, count."""
    return [_row(one, is_verbose) for one in _validators(compose_schema)]


def _row(validator: Validator, is_verbose: bool) -> Row:
    if validator.read is None:
        return skipped(validator.format, f"no {validator.title}")
    written: list[Written] = []
    refused: list[tuple[str, str]] = []
    errors: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (setup, engine) in enumerate(product(SETUPS, ENGINES)):
            name = f"{engine} {' '.join(setup.values())}"
            quant = {"quant": "gguf:q4_k_m"} if engine == "llama.cpp" else {}
            try:
                subject, emission = emitted({**setup, **quant}, engine, validator.format)
            except MemplanError as error:
                refused.append((name, error.message))
                continue
            file = next(file for file in reversed(emission.files) if file.name.endswith(validator.suffix))
            path = Path(folder) / str(number) / file.name
            path.parent.mkdir()
            path.write_text(file.text, encoding="utf-8")
            written.append(Written(path=str(path), name=name, model_dir=None, chips=subject.budget.num_gpus))
            problem = validator.read(path)
            errors[str(path)] = [problem] if problem else []
    batch = Batch(written=tuple(written), refused=tuple(refused))
    return row(validator.format, validator.title, batch, errors, validator.how, is_verbose=is_verbose)


def _validators(schema: Path | None) -> Iterator[Validator]:
    kubernetes = ["kubernetes-validate", "--strict"]
    verify = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    programs: tuple[tuple[str, str, list[str], tuple[str, ...]], ...] = (
        ("kubernetes", ".yaml", kubernetes, ("--version",)),
        ("autoscaling", ".yaml", kubernetes, ("--version",)),
        ("alerts", ".yaml", ["promtool", "check", "rules"], ("--version",)),
        ("systemd", ".service", verify, ("--version",)),
        ("docker", ".sh", ["bash", "-n"], ("--version",)),
        ("load-test", ".sh", ["bash", "-n"], ("--version",)),
    )
    for name, suffix, command, asks in programs:
        title = " ".join(word for word in command if not word.startswith("--man") and "recursive" not in word)
        is_here = shutil.which(command[0]) is not None
        said = f"{title}, {_version(command[0], asks)}" if is_here else title
        yield Validator(name, suffix, said, _program(command) if is_here else None)
    compose = _compose(json.loads(schema.read_text())) if schema else None
    yield Validator("compose", ".yaml", "the schema of the Compose specification", compose, how="jsonschema")
    yield Validator("grafana", ".json", "a parser of JSON", _parsed(json.loads), how="its fields are not known to it")
    yield Validator("limits", ".yaml", "a parser of YAML", _parsed(yaml.safe_load), how="memplan's own format")


def _version(program: str, asks: tuple[str, ...]) -> str:
    done = subprocess.run([program, *asks], capture_output=True, text=True, check=False)
    words = (done.stdout + done.stderr).replace("(", " ").replace(",", " ").split()
    return next((word.partition("+")[0] for word in words if word[:1].isdigit()), "?")


def _program(command: list[str]) -> Reader:
    def read(path: Path) -> str | None:
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        return None if done.returncode == 0 else (done.stdout + done.stderr)[-400:]

    return read


def _compose(schema: dict[str, object]) -> Reader:
    import jsonschema

    def read(path: Path) -> str | None:
        errors = jsonschema.Draft7Validator(schema).iter_errors(yaml.safe_load(path.read_text()))
        return next((error.message[:300] for error in errors), None)

    return read


def _parsed(parse: Callable[[str], object]) -> Reader:
    def read(path: Path) -> str | None:
        parse(path.read_text())
        return None

    return read


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compose-schema", type=Path)
    parser.add_argument("--verbose", action="store_true")
    asked = parser.parse_args()
    found = rows(asked.compose_schema, is_verbose=asked.verbose)
    print("\n".join(table(found)))
    return 1 if any(each.refused for each in found) else 0


if __name__ == "__main__":
    sys.exit(main())
