"""`torchrun`: a script that starts one process for every GPU, with the settings that decide memory as arguments.

Source: torch/distributed/run.py; transformers' HfArgumentParser takes every field of TrainingArguments as an option;
torchtitan/config/manager.py (--job.config_file).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping

from memplan.domain.emission import Emission, EmittedFile
from memplan.domain.training_emission import TrainingSubject
from memplan.emit.training import torchtitan_toml
from memplan.emit.training.arguments_python import sharing
from memplan.emit.training.settings import arguments_of
from memplan.emit.training.words import header
from memplan.emit.training.zero_config import config_file
from memplan.emit.yaml_text import Entry, comment
from memplan.errors import UsageError

FILE_NAME = "train.sh"


def emit(subject: TrainingSubject) -> Emission:
    """Return train.sh, and the config that it names. Raises: UsageError for what the trainer does not have."""
    program, beside = _program(subject)
    words = ["torchrun", *_ranks(subject), *program]
    lines = [
        "#!/bin/sh",
        *comment(header(subject, f"sh {FILE_NAME}" + (", on every machine" if subject.num_machines > 1 else ""))),
        *comment(["one thread for each process: torchrun says so itself, with a warning"]),
        "set -eu",
        "export OMP_NUM_THREADS=1",
        "exec " + " \\\n  ".join(words),
    ]
    file = EmittedFile(name=FILE_NAME, text="\n".join(lines) + "\n", media_type="text/x-shellscript")
    return Emission(files=(file, *beside))


def _ranks(subject: TrainingSubject) -> Iterator[str]:
    if subject.num_machines == 1:
        yield "--standalone"
    else:
        yield f"--nnodes {subject.num_machines}"
        yield "--rdzv-backend c10d"
        yield '--rdzv-endpoint "${MASTER_ADDR:?the address of the first machine}:29500"'
    yield f"--nproc-per-node {subject.processes_per_machine}"


def _program(subject: TrainingSubject) -> tuple[list[str], tuple[EmittedFile, ...]]:
    trainer = subject.question.trainer
    if trainer == "torchtitan":
        files = torchtitan_toml.emit(subject).files
        return ["-m torchtitan.train", f"--job.config_file {files[0].name}"], files
    if trainer == "deepspeed":
        files = (config_file(subject),)
        return ["train.py", f"--deepspeed_config {files[0].name}"], files
    beside: tuple[EmittedFile, ...] = ()
    if subject.training.bucket_elements:
        beside = (config_file(subject),)
    entries = [*arguments_of(subject), *sharing(subject, "torchrun")]
    if any(entry.key == "parallelism_config" for entry in entries):
        raise UsageError("TrainingArguments take no layout of ranks as an option", hint="use --format accelerate")
    return ["train.py", *(_option(entry) for entry in entries)], beside


def _option(entry: Entry) -> str:
    """One option of the script. `--fsdp True` is not taken, `--fsdp` alone is."""
    if entry.key == "fsdp":
        return "--fsdp"
    value = json.dumps(entry.value) if isinstance(entry.value, Mapping) else str(entry.value)
    return f"--{entry.key} {shlex.quote(value)}"
