"""Reading a text that a person wrote: a config, a command line, memplan.yaml."""

from __future__ import annotations

from pathlib import Path

from memplan.errors import UsageError

_MAX_BYTES = 1 << 20


def read_small_text(path: Path, *, holds: str) -> str:
    """Return the text of a file of at most 1 MiB. Raises: UsageError, with `holds` as what such a file is for."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is larger than 1 MiB", hint=holds)
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read {path}: {reason}", hint=holds) from None
