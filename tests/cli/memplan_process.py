"""Running memplan as a person does: a process of its own, with a home of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def memplan(*arguments: str, home: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `memplan ARGUMENTS` with its state and caches below `home`, in `cwd` (default: `home`)."""
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HOME": str(home / "hf"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }
    return subprocess.run(
        [sys.executable, "-m", "memplan", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd or home,
        env=environment,
        check=False,
    )
