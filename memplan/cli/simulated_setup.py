"""The setup that a simulation found, from the JSON that it wrote: the options that ask for it again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.cli.options import WORKLOAD, Given
from memplan.errors import UsageError

_MAX_BYTES = 64 << 20
_HINT = "give what `memplan simulate ... --json` wrote"


def of_simulation(given: Given) -> Given:
    """Return the options of the setup that keeps the limits with the least GPU, else of the one as asked, with those
    that were given beside them.

    Raises: UsageError for a file that is no simulation, or together with a MODEL.
    """
    path: Path = given["from_simulation"]
    if "model" in given or "config" in given:
        raise UsageError("--from-simulation names the model itself", hint="leave out MODEL and --config")
    content = _read(path)
    least = content.get("least")
    found = least if isinstance(least, Mapping) else next(iter(content.get("setups") or ()), None)
    if not isinstance(found, Mapping) or not isinstance(found.get("options"), Mapping):
        raise UsageError(f"{path} has no setup", hint=_HINT)
    what = "the least GPU that keeps the limits" if found is least else "the setup as asked"
    print(f"using {path}: {what}, {found.get('name', '')}", file=sys.stderr)
    kept = {name: value for name, value in given.items() if name != "from_simulation"}
    return {**_options(found["options"], path), **kept}


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is larger than 64 MiB", hint=_HINT)
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint=_HINT) from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON", hint=_HINT) from None
    if not isinstance(content, Mapping) or content.get("schema") != "memplan.simulation/1":
        raise UsageError(f"{path} is no simulation", hint=_HINT)
    return content


def _options(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The options as they are given on a command line, each of its own type."""
    options: dict[str, Any] = {}
    for name, value in found.items():
        option = WORKLOAD.get(name)
        if option is None or value is None:
            raise UsageError(f"{path}: unknown option `{name:.60}`", hint=_HINT)
        if option.kind is Path and isinstance(value, str):
            options[name] = Path(value)
        elif isinstance(value, option.kind if isinstance(option.kind, type) else list):
            options[name] = value
        else:
            raise UsageError(f"{path}: {name} is `{value!s:.60}`", hint=_HINT)
    return options
