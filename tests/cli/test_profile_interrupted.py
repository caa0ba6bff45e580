"""A long profile on a terminal: how far it is, with the time left, and what Ctrl-C keeps of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from memplan_interrupted import interrupted

pytest.importorskip("torch")

ENDLESS = ("--device", "cpu", "--phase", "prefill,decode", "--prompt-tokens", "16", "--output-tokens", "60000")


def test_an_interruption_keeps_what_was_measured_until_then(tmp_path: Path) -> None:
    answer = tmp_path / "kept.json"
    command = ("profile", "demo", *ENDLESS, "--cache", "static", "--json", "--output", str(answer))
    code, said = interrupted(*command, home=tmp_path, once=b"profiling decode")
    assert code == 130
    assert b"%" in said
    kept = json.loads(answer.read_text())
    assert kept["interrupted"] is True
    assert "prefill" in {phase["phase"] for phase in kept["phases"]}
    assert any("interrupted in" in warning for warning in kept["warnings"])


LOST = """
import signal, sys
from memplan.cli.app import main

freed = 0


def interrupt(frame, event, argument):
    global freed
    if event == "call" and frame.f_code.co_name == "_freed":
        freed += 1
        if freed == 3000:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)


sys.setprofile(interrupt)
main(sys.argv[1:])
"""


def test_an_interruption_while_a_storage_is_freed_is_heeded(tmp_path: Path) -> None:
    """Python drops what is raised in the callback of a weak reference, by which the recorder sees a storage freed."""
    answer = tmp_path / "kept.json"
    command = ("profile", "demo", *ENDLESS, "--json", "--output", str(answer))
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    running = [sys.executable, "-c", LOST, *command]
    done = subprocess.run(running, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "Exception ignored" not in done.stderr
    assert json.loads(answer.read_text())["interrupted"] is True


DEADLY = """
import signal, sys


def interrupt(frame, event, argument):
    if event == "call" and frame.f_code.co_filename == "<string>" and frame.f_code.co_name == "<module>":
        while frame and not (frame.f_code.co_name == "main" and frame.f_globals["__name__"] == "memplan.cli.app"):
            frame = frame.f_back
        if frame:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)


sys.setprofile(interrupt)
"""


def test_an_interruption_in_an_exec_ends_with_the_documented_code(tmp_path: Path) -> None:
    """Such as dataclasses make when a library is imported; Python would end as if the signal had killed it."""
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    search = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": search}
    running = [sys.executable, "-m", "memplan", "profile", "demo", "--phase", "prefill"]
    done = subprocess.run(running, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert done.returncode == 130


def test_off_a_terminal_nothing_is_told_of_how_far_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "memplan", "profile", "demo", "--phase", "prefill", "--quiet"]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.startswith("PEAK")
