"""A long profile on a terminal: how far it is, with the time left, and what Ctrl-C keeps of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pty = pytest.importorskip("pty")

ENDLESS = ["--device", "cpu", "--phase", "prefill,decode", "--prompt-tokens", "16", "--output-tokens", "60000"]


def test_an_interruption_keeps_what_was_measured_until_then(tmp_path: Path) -> None:
    seen, answer = tmp_path / "seen", tmp_path / "kept.json"
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", "memplan", "profile", "demo", *ENDLESS, "--cache", "static", "--json"]
    environment = {**os.environ, "XDG_STATE_HOME": str(seen), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    running = subprocess.Popen([*command, "--output", str(answer)], stderr=other_end, env=environment, cwd=tmp_path)
    os.close(other_end)
    said = b""
    while b"profiling decode" not in said:
        said += os.read(terminal, 4096)
    running.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the other end is closed
        while more := os.read(terminal, 4096):
            said += more
    assert running.wait() == 130
    assert b"%" in said
    kept = json.loads(answer.read_text())
    assert kept["interrupted"] is True
    assert "prefill" in {phase["phase"] for phase in kept["phases"]}
    assert any("interrupted in" in warning for warning in kept["warnings"])


def test_off_a_terminal_nothing_is_told_of_how_far_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memplan", "profile", "demo", "--phase", "prefill", "--quiet"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.startswith("PEAK")
