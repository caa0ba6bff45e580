"""Reading YAML of the catalogue quickly: once parsed, a text is kept as JSON in the user's cache folder.

Importing and running a YAML parser takes longer than the rest of an estimate. A copy holds the text that it was made
from and is used only for that text; one that cannot be read or written is done without.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any, cast

from memplan.errors import UsageError

_ROOT = Path(__file__).parent
_MAX_COPIES = 2000
# Changes whenever the same text parses to something else than it did.
_FORM = "2"
# A number such as 1e-05, which YAML 1.1 takes for a word and every later YAML, and JSON, for a number.
_EXPONENT = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$")


def load_table(relative: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file below the catalogue."""
    path = _ROOT / relative
    return parse_yaml(path.read_text(encoding="utf-8"), path.name)


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Return the mapping that a catalogue's YAML text holds, from its copy if there is one.

    Raises: UsageError when the text is no YAML mapping.
    """
    copy = cache_folder() / f"{_FORM}-{zlib.crc32(text.encode()):08x}-{len(text)}.json"
    try:
        kept = json.loads(copy.read_text(encoding="utf-8"))
        if kept["text"] == text:
            table: dict[str, Any] = kept["table"]
            return table
    except (OSError, ValueError, KeyError, TypeError):
        pass
    table = read_yaml(text, origin, exponents=True)
    _keep(copy, text, table)
    return table


def read_yaml(text: str, origin: str, *, exponents: bool = False) -> dict[str, Any]:
    """Parse a YAML mapping with the safe loader, the C one where it is built.

    `exponents` reads 1e-05 as a number, as the JSON means from which the catalogue's configs were taken. Other
    programs' files are read as those programs read them.
    Raises: UsageError when the text is no YAML mapping.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if exponents:
        loader = cast("Any", type("CatalogueLoader", (loader,), {}))
        loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))
    try:
        table = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{origin} is not valid YAML{where}: {problem}", hint="mend it, or write it again") from None
    if not isinstance(table, dict):
        raise UsageError(f"{origin} is not a YAML mapping")
    return table


def load_constants(engine: str) -> tuple[dict[str, float], dict[str, Any]]:
    """The constants of an engine's model that no source states, and its intervals: `engines/ENGINE_fitted.yaml`."""
    table = load_table(Path("engines") / f"{engine}_fitted.yaml")
    sizes = {name: value for name, value in table.items() if name not in ("fitted_by", "intervals")}
    return sizes, table["intervals"]


def cache_folder() -> Path:
    """Where parsed texts are kept: XDG_CACHE_HOME/memplan/tables."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "memplan" / "tables"


def _keep(copy: Path, text: str, table: dict[str, Any]) -> None:
    """Write a copy through a temporary name; a folder that cannot be written to costs only time.

    A text whose table JSON would change (dates, numbers as keys) is not kept. The folder is emptied when it grows.
    """
    try:
        written = json.dumps({"text": text, "table": table})
        if json.loads(written)["table"] != table:
            return
        copy.parent.mkdir(parents=True, exist_ok=True)
        if len(os.listdir(copy.parent)) > _MAX_COPIES:
            for old in copy.parent.iterdir():
                old.unlink(missing_ok=True)
        partial = copy.with_name(f".{copy.name}.{os.getpid()}")
        partial.write_text(written, encoding="utf-8")
        os.replace(partial, copy)
    except (OSError, TypeError, ValueError):
        return
