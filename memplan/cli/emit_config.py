"""`memplan emit-config`: the setup of an estimate as a file that an engine, a container or a monitor reads."""

from __future__ import annotations

import sys

from memplan.cli.options import (
    DEVICE_OPTIONS,
    EMIT_OPTIONS,
    LLAMA_CPP_OPTIONS,
    OUTPUT_OPTIONS,
    SERVING_OPTIONS,
    SOURCE_OPTIONS,
    Given,
    accepts,
)
from memplan.cli.output import answer_with, check_output

# The same options as an estimate, and what an emission needs beside them; `--quiet` and `--no-color` have no use here.
_OUTPUT = tuple(option for option in OUTPUT_OPTIONS if option.name not in ("quiet", "no_color"))


@accepts(*EMIT_OPTIONS, *DEVICE_OPTIONS, *SERVING_OPTIONS, *LLAMA_CPP_OPTIONS, *SOURCE_OPTIONS, *_OUTPUT)
def emit_config_command(given: Given) -> None:
    """Write the config that runs a model as estimated, with the reason for every value in it."""
    if given.get("format") == "list":
        answer_with(given, _list_formats())
        return
    check_output(given)
    from memplan.cli.choosing import chosen_setup
    from memplan.cli.emit_subject import subject_of
    from memplan.emit.registry import find_format, load_emitter

    wanted = find_format(given["format"], "")[1] if "format" in given else None
    setup = chosen_setup(given, wanted, strict=given.get("strict", False))
    name, found = find_format(given.get("format"), setup.question.engine)
    emission = load_emitter(found)(subject_of(setup, name))
    for note in (*setup.changes, *setup.budget.warnings, *emission.notes):
        print(f"note: {note}", file=sys.stderr)
    if setup.budget.verdict == "tight":
        print("note: it is tight: it may or may not fit", file=sys.stderr)
    answer_with(given, emission.files[0].text)


def _list_formats() -> str:
    from memplan.emit.registry import FORMATS

    width = max(len(name) for name in FORMATS)
    return "".join(f"{name:{width}}  {found.about}\n" for name, found in FORMATS.items())
