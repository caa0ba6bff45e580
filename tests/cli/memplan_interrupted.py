"""Running memplan on a terminal, and pressing Ctrl-C once it has said something."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")

ENDED_SECONDS = 300  # what says nothing, or does not heed an interruption, is killed then; the exit code tells


def interrupted(*arguments: str, home: Path, once: bytes) -> tuple[int, bytes]:
    """Run `memplan ARGUMENTS` in `home`, interrupt it `once` this was said; return its exit code and what it said."""
    terminal, other_end = pty.openpty()
    environment = {**os.environ, "XDG_STATE_HOME": str(home / "state"), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    running = subprocess.Popen(
        [sys.executable, "-m", "memplan", *arguments], stderr=other_end, env=environment, cwd=home
    )
    os.close(other_end)
    endless = threading.Timer(ENDED_SECONDS, running.kill)
    endless.daemon = True
    endless.start()
    said = b""
    while once not in said:
        said += os.read(terminal, 4096)
    running.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the other end is closed
        while more := os.read(terminal, 4096):
            said += more
    os.close(terminal)
    code = running.wait()
    endless.cancel()
    return code, said
