"""A long simulation on a terminal: how far it is, and that Ctrl-C ends it with 130 and no half an answer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")

LONG = ["--rate", "20", "--requests", "300k", "--prompt-len", "300..400", "--output-len", "100..200", "--offline"]


def test_ctrl_c_ends_a_simulation_that_shows_how_far_it_is(tmp_path: Path) -> None:
    terminal, other_end = pty.openpty()
    answer = tmp_path / "answer.json"
    command = [sys.executable, "-m", "memplan", "simulate", "llama-8b", "--gpu", "h100", "--context", "4K", *LONG]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"}
    running = subprocess.Popen(
        [*command, "--json", "--output", str(answer)], stderr=other_end, env=environment, cwd=tmp_path
    )
    os.close(other_end)
    said = b""
    while b"as asked" not in said:
        said += os.read(terminal, 4096)
    running.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the other end is closed
        while more := os.read(terminal, 4096):
            said += more
    assert running.wait() == 130
    assert b"%" in said
    assert b"interrupted" in said
    assert not answer.exists()
