"""What the sweeps share: a journal that a later run resumes from, a time budget, children that cannot outlive it.

A journal is a file of JSON lines, one per finished measurement, each with its `key`. A line is written in one go as
soon as it is known, so a sweep that is cut off loses only what it was measuring.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def say(text: str) -> None:
    """Progress goes to stderr at once; what is measured goes to files."""
    print(text, file=sys.stderr, flush=True)


def sweep_parser(description: str, *, into: Path, budget_s: float) -> argparse.ArgumentParser:
    """Return a parser with the options that every sweep has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment to measure")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a few points to try this out")
    parser.add_argument("--into", type=Path, default=into, help="folder that records are appended in")
    parser.add_argument("--budget-s", type=float, default=budget_s)
    return parser


def fingerprint(*parts: object) -> str:
    """Return a short name for exactly these values; equal values give equal names, whatever the order of their keys."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(kw_only=True)
class Journal:
    """The records of a sweep: appended to one file, known from that and from `others` (earlier sweeps, kept apart)."""

    path: Path
    others: Sequence[Path] = ()
    known: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in (*self.others, self.path):
            self.known |= {record["key"]: record for record in read_lines(path) if "key" in record}

    def append(self, record: Record) -> None:
        """Write one record and make sure that it is on disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record) + "\n"
        if self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            line = "\n" + line  # the last run was cut off in the middle of a line
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.known[record["key"]] = record


def read_lines(path: Path) -> Iterator[Record]:
    """Return the records of a file of JSON lines; none when it is missing. A line that was cut off is passed over."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


@dataclass(kw_only=True)
class Budget:
    """Seconds that a sweep may take, and how its guesses compare with what measurements really took."""

    limit_s: float
    started: float = field(default_factory=time.monotonic)
    guessed_s: float = 0.0
    took_s: float = 0.0

    @property
    def left_s(self) -> float:
        """Seconds until the sweep has to end."""
        return self.limit_s - (time.monotonic() - self.started)

    def expected_s(self, guess_s: float) -> float:
        """Return a guess, corrected by how far earlier guesses were off."""
        return guess_s * self.took_s / self.guessed_s if self.guessed_s else guess_s

    def allows(self, guess_s: float) -> bool:
        """Whether a measurement that is guessed to take so long still ends in time."""
        return self.expected_s(guess_s) <= self.left_s

    def learn(self, guess_s: float, took_s: float) -> None:
        """Take note of how long a measurement took that was guessed at."""
        self.guessed_s += guess_s
        self.took_s += took_s


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child process ended: its exit code (null: stopped at its limit), its output, the seconds it took."""

    code: int | None
    output: str
    seconds: float


def run_child(command: Sequence[str], *, limit_s: float, env: Mapping[str, str] | None = None) -> Ended:
    """Run a command in a session of its own; at the limit, and in any case at the end, its whole family is ended."""
    started = time.monotonic()
    child = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    code: int | None
    try:
        output, _ = child.communicate(timeout=max(limit_s, 1))
        code = child.returncode
    except subprocess.TimeoutExpired:
        _end_family(child)
        output, _ = child.communicate()
        code = None
    finally:
        _end_family(child)
    return Ended(code=code, output=output.decode(errors="replace"), seconds=round(time.monotonic() - started, 1))


def _end_family(child: subprocess.Popen[bytes]) -> None:
    """End every process of the child's session; one that is gone already is none of our concern."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def pending(keys: Iterable[str], journal: Journal) -> list[str]:
    """Return the keys that no record has yet, in their order."""
    return [key for key in keys if key not in journal.known]
