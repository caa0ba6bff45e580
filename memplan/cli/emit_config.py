"""`memplan emit-config`: the setup of an estimate as a file that an engine, a container or a monitor reads."""

from __future__ import annotations

import sys
from pathlib import Path

from memplan.cli.options import (
    DEVICE_OPTIONS,
    EMIT_OPTIONS,
    LLAMA_CPP_OPTIONS,
    OUTPUT_OPTIONS,
    SERVING_OPTIONS,
    SOURCE_OPTIONS,
    TRAINING,
    TRAINING_OPTIONS,
    Given,
    accepts,
)
from memplan.cli.output import answer_with, check_output
from memplan.domain.emission import Emission
from memplan.errors import UsageError

# The same options as an estimate, and what an emission needs beside them; `--quiet` and `--no-color` have no use here.
_OUTPUT = tuple(option for option in OUTPUT_OPTIONS if option.name not in ("quiet", "no_color"))


@accepts(
    *EMIT_OPTIONS,
    *DEVICE_OPTIONS,
    *SERVING_OPTIONS,
    *LLAMA_CPP_OPTIONS,
    *SOURCE_OPTIONS,
    *_OUTPUT,
    *TRAINING_OPTIONS,
)
def emit_config_command(given: Given) -> None:
    """Write the config that runs or trains a model as estimated, with the reason for every value in it."""
    if given.get("format") == "list":
        answer_with(given, _list_formats())
        return
    if _folder(given) is None:
        check_output(given)
    if "from_simulation" in given:
        from memplan.cli.simulated_setup import of_simulation

        given = of_simulation(given)
    from memplan.cli.state import filled_in

    if "config" not in given and TRAINING & filled_in(given, is_told=False).keys():
        from memplan.cli.emit_training import training_emission

        name, emission = training_emission(filled_in(given), given)
    else:
        name, emission = _serving_emission(given)
    _write(given, name, emission)


def _serving_emission(given: Given) -> tuple[str, Emission]:
    """The config of a server, and its format; what there is to say of it goes to stderr."""
    from memplan.cli.choosing import chosen_setup
    from memplan.cli.emit_subject import subject_of
    from memplan.emit.checks import settled
    from memplan.emit.file_checks import refuse_traps
    from memplan.emit.registry import find_format, load_emitter

    wanted = find_format(given["format"], "")[1] if "format" in given else None
    setup = chosen_setup(given, wanted, strict=given.get("strict", False))
    name, found = find_format(given.get("format"), setup.question.engine)
    subject = settled(subject_of(setup, name))
    emission = refuse_traps(subject, name, load_emitter(found)(subject))
    for note in (*subject.changes, *subject.budget.warnings, *emission.notes):
        print(f"note: {note}", file=sys.stderr)
    if subject.budget.verdict == "tight":
        print("note: it is tight: it may or may not fit", file=sys.stderr)
    return name, emission


def _write(given: Given, name: str, emission: Emission) -> None:
    folder = _folder(given)
    if given.get("json"):
        from memplan.report.emission_json import emission_json

        answer_with(given, emission_json(name, emission))
    elif folder is not None:
        _write_all(folder, emission, force=given.get("force", False))
    else:
        answer_with(given, emission.files[0].text)
        for file in emission.files[1:]:
            print(f"note: {file.name} belongs to it: --output DIRECTORY writes all files", file=sys.stderr)


def _folder(given: Given) -> Path | None:
    """The directory that --output names, when it is one."""
    path: Path | None = given.get("output")
    return path if path is not None and path.is_dir() and not given.get("json") else None


def _write_all(folder: Path, emission: Emission, *, force: bool) -> None:
    """Write every file into a directory; none when one of them exists already.

    Raises: UsageError for a file that exists, without --force.
    """
    from memplan.cli.output import write_file

    for file in emission.files:
        if (folder / file.name).exists() and not force:
            raise UsageError(f"{folder / file.name} exists already", hint="use --force to overwrite it")
    for file in emission.files:
        write_file(folder / file.name, file.text)
        print(f"wrote {folder / file.name}", file=sys.stderr)


def _list_formats() -> str:
    from memplan.emit.registry import FORMATS, TRAINING_FORMATS

    formats = {**FORMATS, **TRAINING_FORMATS}
    width = max(len(name) for name in formats)
    return "".join(f"{name:{width}}  {found.about}\n" for name, found in formats.items())
