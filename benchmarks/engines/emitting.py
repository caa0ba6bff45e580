"""Writing the configs of many setups into a folder, for an engine at the release that is installed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.catalog.models import find_model
from memplan.cli.choosing import chosen_setup
from memplan.cli.emit_subject import subject_of
from memplan.domain.emission import Emission, EmitSubject
from memplan.emit.checks import settled
from memplan.emit.file_checks import refuse_traps
from memplan.emit.registry import find_format, load_emitter
from memplan.errors import MemplanError


@dataclass(frozen=True)
class Written:
    """One written config: its file, its setup in words, and a directory with the model's config.json (if known)."""

    path: str
    name: str
    model_dir: str | None
    chips: int


@dataclass(frozen=True)
class Batch:
    """What was written, and the setups that memplan refuses to write, with its reason."""

    written: tuple[Written, ...]
    refused: tuple[tuple[str, str], ...]


def write_all(setups: Iterable[Mapping[str, Any]], engine: str, format_name: str, folder: Path) -> Batch:
    """Write one config for every setup. What memplan refuses is kept apart: a refusal is an answer."""
    written: list[Written] = []
    refused: list[tuple[str, str]] = []
    for number, options in enumerate(setups):
        name = " ".join(f"{key}={value}" for key, value in options.items())
        try:
            subject, emission = emitted(options, engine, format_name)
        except MemplanError as error:
            refused.append((name, f"{error.message}{f' ({error.hint})' if error.hint else ''}"))
            continue
        place = folder / f"{number:03d}"
        place.mkdir(parents=True)
        for file in emission.files:
            (place / file.name).write_text(file.text, encoding="utf-8")
        model_dir = _model_dir(subject.spec_name, folder / "models")
        path = str(place / emission.files[0].name)
        written.append(Written(path=path, name=name, model_dir=model_dir, chips=subject.budget.num_gpus))
    return Batch(written=tuple(written), refused=tuple(refused))


def emitted(options: Mapping[str, Any], engine: str, format_name: str) -> tuple[EmitSubject, Emission]:
    """What `memplan emit-config` makes of options. Raises: MemplanError for what it refuses."""
    wanted = find_format(format_name, engine)[1]
    setup = chosen_setup({**options, "engine": engine, "offline": True}, wanted, strict=False)
    subject = settled(subject_of(setup, format_name))
    return subject, refuse_traps(subject, format_name, load_emitter(wanted)(subject))


def _model_dir(name: str, folder: Path) -> str | None:
    """A directory with the config that the catalogue knows, unquantized: what an engine's own checks read."""
    known = find_model(name)
    if known is None:
        return None
    place = folder / re.sub(r"\W+", "-", known.name)
    if not place.exists():
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(known.config), encoding="utf-8")
    return str(place)
