"""What a command given no MODEL works on: memplan.yaml in the working directory, else the last estimate made there.
Where there is neither, it is what was quantized there.

A command that names its MODEL never depends on either. The state of a directory is one JSON object: `directory`,
`given` (the options of the last command that asked for a workload) and `quantized` (see QuantizedOutput).
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.cli.options import WORKLOAD, Given
from memplan.cli.small_file import read_small_text
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass

PROJECT_FILE = "memplan.yaml"
_RECIPE = "recipe"  # the title and the expected answer of a file of recipes/


def filled_in(given: Given, *, forget: frozenset[str] = frozenset(), is_told: bool = True) -> Given:
    """Return what was given; without a MODEL, on top of memplan.yaml or of the last command in this directory, of
    which the options in `forget` are left aside; where there is neither, of what was quantized here.

    Says on stderr what it took, where `is_told`.

    Raises: UsageError when there is neither, or memplan.yaml is not usable.
    """
    if "model" in given:
        return given
    project = Path(PROJECT_FILE)
    if project.is_file():
        remembered, where = read_project(project), PROJECT_FILE
    else:
        last, where = _last(), "the last command here"
        if not last and (own := quantized_output()) is not None:
            last, where = {"model": str(own.output)}, "what was quantized here"
        remembered = {name: value for name, value in last.items() if name not in forget}
    subject = remembered.get("model", remembered.get("config"))
    if subject is None:
        raise UsageError("no model was named", hint="write memplan estimate llama-70b --gpu a100-80g")
    gpu = given.get("gpu", remembered.get("gpu"))
    if is_told:
        print(f"using {where}: {subject}{f' on {gpu}' if gpu else ''}", file=sys.stderr)
    return {**remembered, **given}


def remember(given: Given) -> None:
    """Keep the workload of a command for the next one in this directory; a folder that cannot be written is let be."""
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in given.items() if name in WORKLOAD}
    _write({**_read(), "given": kept})


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedOutput:
    """What `memplan quantize` wrote last in a directory: an entry of the directory's state.

    `model` is the name of the ModelSpec that was quantized, `output` the folder or file that holds the result,
    `scheme` what its weights are stored in. `quality` is what was measured of it, in words ("perplexity 6.41, 6.24
    before"), empty where nothing was.
    """

    model: str
    output: Path
    scheme: str
    quality: str = ""


def remember_quantized(found: QuantizedOutput) -> None:
    """Keep what was quantized for the next command in this directory; its workload stays that of the last command."""
    kept = {"model": found.model, "output": str(found.output.absolute()), "scheme": found.scheme}
    _write({**_read(), "quantized": {**kept, "quality": found.quality}})


def quantized_output() -> QuantizedOutput | None:
    """Return what was quantized last in this directory; None when nothing was, or it is gone."""
    kept = _read().get("quantized")
    if not isinstance(kept, dict) or not all(isinstance(kept.get(key), str) for key in ("model", "output", "scheme")):
        return None
    output = Path(kept["output"])
    if not (output / "config.json").is_file() and not output.is_file():
        return None
    quality = str(kept.get("quality") or "")
    return QuantizedOutput(model=kept["model"], output=output, scheme=kept["scheme"], quality=quality)


def read_project(path: Path) -> dict[str, Any]:
    """Read memplan.yaml: option names as keys, as on the command line. What a recipe says of itself is left aside.

    Raises: UsageError for a file that is not such a mapping, an unknown key or a value of the wrong type.
    """
    return read_scenario(path)[0]


def read_scenario(path: Path) -> tuple[dict[str, Any], object]:
    """Read a file like memplan.yaml: its options, and what a recipe says of itself. Raises: as `read_project`."""
    from memplan.catalog.tables import read_yaml

    text = read_small_text(path, holds="it holds options such as `model: llama-70b`")
    found = {str(key).replace("-", "_"): value for key, value in read_yaml(text, str(path)).items()}
    recipe = found.pop(_RECIPE, None)
    return {name: _typed(name, value, str(path)) for name, value in found.items() if value is not None}, recipe


def _typed(name: str, value: object, origin: str) -> Any:
    option = WORKLOAD.get(name)
    if option is None:
        known = sorted(key.replace("_", "-") for key in WORKLOAD)
        hint = did_you_mean(name.replace("_", "-"), known) or "its keys are the options of memplan estimate"
        raise UsageError(f"unknown key in {origin}: `{name}`", hint=hint)
    if option.kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if option.kind is Path and isinstance(value, str):
        return Path(value)
    if option.kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if option.kind is bool and isinstance(value, bool):
        return value
    if option.kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if option.kind == list[str] and isinstance(value, Mapping):
        return [f"{key}={item}" for key, item in value.items()]
    if option.kind == list[str] and isinstance(value, list):
        return [str(item) for item in value]
    raise UsageError(f"{origin}: {name} is `{value}`", hint=f"see memplan estimate --help for --{name}")


def _last() -> dict[str, Any]:
    given = _read().get("given")
    if not isinstance(given, dict):
        return {}
    return {
        name: Path(value) if WORKLOAD[name].kind is Path else value for name, value in given.items() if name in WORKLOAD
    }


def _read() -> dict[str, Any]:
    """The state of this directory; empty when there is none, or it is not readable."""
    try:
        state = json.loads(_state_file().read_text(encoding="utf-8"))
        return state if state["directory"] == os.getcwd() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write(state: Mapping[str, Any]) -> None:
    """Replace the state of this directory; a folder that cannot be written is let be."""
    path = _state_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps({**state, "directory": os.getcwd()}), encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        return


def _state_file() -> Path:
    root = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(root) / "memplan" / "last" / f"{zlib.crc32(os.getcwd().encode()):08x}.json"
