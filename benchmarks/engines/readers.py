"""The readers of engines' own configs: their parsers under their own interpreters, their programs, tables of what they
take.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emitting import Batch, write_all
from key_tables import script_words, title_of, wrong_keys
from outcome import Row, row, skipped
from setups import setups

HERE = Path(__file__).parent
_PROBES = {"vllm": "import vllm; print(vllm.__version__)", "sglang": "import sglang.version as v; print(v.__version__)"}
_TITLES = {"vllm": "vLLM", "sglang": "SGLang"}
_SCRIPTS: tuple[dict[str, Any], ...] = (
    {"context": "1k", "set": ["prefill_chunk_size=64", "cpu_memory=4GiB"]},
    {"context": "1k", "set": ["num_beams=2", "max_new_tokens=8", "cache_implementation=static"]},
    {"context": "512", "set": ["cache_implementation=none", "max_new_tokens=4"], "dtype": "float32"},
)
# What Ollama says once it has read a file: it does not find its server, or the weights.
_AFTER_READING = re.compile(r"connect|ollama server|could not find|pull model|file does not exist", re.IGNORECASE)


def python_engine(engine: str, python: str, source: str | None, *, quick: bool, is_verbose: bool) -> Row:
    """Check one engine that is a Python package, under its own interpreter."""
    environment = {**os.environ, "VLLM_TARGET_DEVICE": "cpu", **({"PYTHONPATH": source} if source else {})}
    probe = subprocess.run([python, "-c", _PROBES[engine]], capture_output=True, text=True, env=environment)
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["?"])[-1]
        return skipped(engine, f"not in {Path(python).name} ({last[:60]})")
    version = probe.stdout.strip().splitlines()[-1].partition("+")[0]
    with tempfile.TemporaryDirectory() as folder:
        batch = write_all(setups(quick=quick), f"{engine}@{version}", engine, Path(folder))
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
    how = "its parser, then its own checks of the config"
    how += f" ({shallow} by the parser alone: the model's code or the draft is not here)" if shallow else ""
    kind = ", unpacked wheel" if source else ""
    return row(engine, f"{_TITLES[engine]} {version}{kind}", batch, errors, how, is_verbose=is_verbose)


def llama_server(program: str | None, format_name: str, *, quick: bool, is_verbose: bool) -> Row:
    """Check arguments and presets with llama-server itself, which reads them all before it prints its version."""
    if not program or not shutil.which(program):
        return skipped(format_name, "no llama-server here")
    probe = subprocess.run([program, "--version"], capture_output=True, text=True)
    errors: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        batch = write_all(llama_setups(quick=quick), "llama.cpp", format_name, Path(folder))
        for one in batch.written:
            arguments = ["--models-preset", one.path] if format_name.endswith("presets") else script_words(one.path)
            done = subprocess.run([program, *arguments, "--version"], capture_output=True, text=True)
            lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
            errors[one.path] = (lines or [f"exit code {done.returncode}"])[:1] if done.returncode else []
    lines = (probe.stdout + probe.stderr).splitlines()
    version = next((line.partition(":")[2].split()[0] for line in lines if line.startswith("version:")), "?")
    return row(format_name, f"llama-server {version}", batch, errors, "its own parser", is_verbose=is_verbose)


def ollama(command: str | None, *, quick: bool, is_verbose: bool) -> Row:
    """Check Modelfiles with a command that reads the file named behind it, such as `ollama create checked -f`: Ollama's
    client reads a file before it looks for its server.
    """
    words = shlex.split(command or "")
    if not words or not shutil.which(words[0]):
        return skipped("ollama", "no reader of Modelfiles here")
    errors: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        batch = write_all(llama_setups(quick=quick), "llama.cpp", "ollama", Path(folder))
        for one in batch.written:
            done = subprocess.run(
                [*words, one.path],
                capture_output=True,
                text=True,
                env={**os.environ, "OLLAMA_HOST": "127.0.0.1:1"},
                cwd=folder,
            )
            said = (done.stdout + done.stderr).strip()
            is_wrong = done.returncode != 0 and not _AFTER_READING.search(said)
            errors[one.path] = [said[-200:] or f"exit code {done.returncode}"] if is_wrong else []
    version = subprocess.run([words[0], "--version"], capture_output=True, text=True).stdout.split()
    return row(
        "ollama",
        f"Ollama {version[-1] if version else '?'}",
        batch,
        errors,
        "its parser and its parameters",
        is_verbose=is_verbose,
    )


def transformers(python: str | None, *, quick: bool, is_verbose: bool) -> Row:
    """Run scripts on this machine's CPU, for a model that is made on the spot."""
    probe = "import accelerate, torch, transformers; print(transformers.__version__)"
    found = subprocess.run([python, "-c", probe], capture_output=True, text=True) if python else None
    if python is None or found is None or found.returncode:
        return skipped("transformers", "no interpreter with transformers, torch and accelerate")
    version = found.stdout.split()[-1]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        command = [python, str(HERE / "tiny_models.py"), "grouped-query", str(model)]
        subprocess.run(command, check=True, capture_output=True)
        asked = [{"model": str(model), "gpu": "l4", **options} for options in _SCRIPTS[: 1 if quick else None]]
        batch = write_all(asked, f"transformers@{version}", "transformers", Path(folder))
        errors: dict[str, list[str]] = {}
        for one in batch.written:
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
            done = subprocess.run([python, one.path], capture_output=True, text=True, env=environment)
            said = (done.stderr.strip().splitlines() or ["?"])[-1]
            errors[one.path] = [said[:200]] if done.returncode else []
    how = "the script runs on the CPU and generates"
    return row("transformers", f"transformers {version}", batch, errors, how, is_verbose=is_verbose)


def by_table(name: str, engine: str, release: str, *, quick: bool, is_verbose: bool) -> Row:
    """Check a format by the table of its keys."""
    with tempfile.TemporaryDirectory() as folder:
        batch: Batch = write_all(setups(quick=quick), engine, name, Path(folder))
        errors = {one.path: wrong_keys(name, release, one.path) for one in batch.written}
    how = "keys, kinds and ranges; its own reader does not run here"
    return row(name, f"a table of {title_of(name)} {release}", batch, errors, how, is_verbose=is_verbose)


def llama_setups(*, quick: bool) -> Iterator[dict[str, Any]]:
    """The setups that llama.cpp has words for: models, cards, lengths, slots and mixes."""
    kept = ("model", "gpu", "context", "concurrency")
    for number, options in enumerate(setups(quick=quick)):
        one = {name: value for name, value in options.items() if name in kept}
        yield {**one, "quant": ("gguf:q4_k_m", "gguf:q8_0", "gguf:q5_k_m")[number % 3]}
