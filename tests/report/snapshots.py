"""Snapshots: what a report looked like when a person last looked at it.

`MEMPLAN_UPDATE_SNAPSHOTS=1 pytest tests/report` writes them anew; the change is then reviewed as any other.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "snapshots"
UPDATE = "MEMPLAN_UPDATE_SNAPSHOTS"


def check_snapshot(name: str, text: str) -> None:
    """Compare `text` with the snapshot `name`, and fail with the difference."""
    path = FOLDER / name
    if os.environ.get(UPDATE) == "1":
        path.write_text(text, encoding="utf-8")
        return
    if not path.exists():
        pytest.fail(f"no snapshot {name}; write it with {UPDATE}=1")
    kept = path.read_text(encoding="utf-8")
    if kept != text:
        changes = difflib.unified_diff(kept.splitlines(), text.splitlines(), "snapshot", "now", lineterm="")
        pytest.fail(f"{name} differs; if that is meant, write it anew with {UPDATE}=1\n" + "\n".join(changes))
