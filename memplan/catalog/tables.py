"""Reading a whole YAML table of the catalogue quickly: once parsed, it is kept as JSON in the user's cache folder.

Importing and running a YAML parser takes longer than the rest of an estimate. The copy is named by the file's path,
size and modification time, so an edited table is parsed again; a copy that cannot be read or written is done without.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent


def load_table(relative: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file below the catalogue."""
    path = _ROOT / relative
    status = path.stat()
    key = hashlib.sha256(f"{path}|{status.st_size}|{status.st_mtime_ns}".encode()).hexdigest()[:24]
    cached = cache_folder() / f"{path.stem}-{key}.json"
    try:
        table: dict[str, Any] = json.loads(cached.read_text(encoding="utf-8"))
        return table
    except (OSError, ValueError):
        pass
    table = parse_yaml(path.read_text(encoding="utf-8"))
    _keep(cached, table)
    return table


def parse_yaml(text: str) -> dict[str, Any]:
    """Parse a mapping with the safe loader, the C one where it is built."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table: dict[str, Any] = yaml.load(text, Loader=loader)
    return table


def cache_folder() -> Path:
    """Where parsed tables are kept: XDG_CACHE_HOME/memplan/tables."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "memplan" / "tables"


def _keep(path: Path, table: dict[str, Any]) -> None:
    """Write the copy through a temporary name; a folder that cannot be written to costs only time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(table, stream)
        os.replace(name, path)
    except OSError:
        return
