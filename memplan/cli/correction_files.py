"""Where corrections are kept, and how their files are written."""

from __future__ import annotations

import json
import os
from pathlib import Path

from memplan.errors import UsageError


def write_runs(path: Path, content: dict[str, object]) -> None:
    """Write a file of corrections whole or not at all. Raises: UsageError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="set XDG_STATE_HOME") from error


def corrections_folder() -> Path:
    """Where corrections are kept: under the user's state folder."""
    root = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(root) / "memplan" / "corrections"
