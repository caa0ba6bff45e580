"""Where a command's answer goes: the real stdout, or a file that is written whole or not at all.

`guarded_stdout` moves the process's file descriptor 1 onto stderr for the time of a command, so that a stray print of a
library or of a child process never mixes with the answer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from memplan.errors import UsageError

_answer: TextIO | None = None


@contextmanager
def guarded_stdout() -> Iterator[None]:
    """Keep the real stdout for the answer; meanwhile everything else that is printed goes to stderr."""
    global _answer
    sys.stdout.flush()
    try:
        answer_fd = os.dup(1)
        os.dup2(2, 1)
    except OSError:
        yield
        return
    _answer = os.fdopen(answer_fd, "w", encoding="utf-8", errors="replace")
    try:
        yield
        _answer.flush()
    finally:
        sys.stdout.flush()
        os.dup2(_answer.fileno(), 1)
        with suppress(BrokenPipeError):
            _answer.close()
        _answer = None


def write_answer(text: str) -> None:
    """Write to the real stdout."""
    stream = _answer or sys.stdout
    stream.write(text)
    stream.flush()


def answer_is_terminal() -> bool:
    """Whether the answer goes to a terminal, which may have colours."""
    return (_answer or sys.stdout).isatty()


def check_output(given: Mapping[str, Any]) -> None:
    """Refuse an --output that cannot be written, before any work is done.

    Raises: UsageError when the file exists and --force is not set, or its folder does not.
    """
    path: Path | None = given.get("output")
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{path} is a directory", hint="name a file in it")
    if path.exists() and not given.get("force"):
        raise UsageError(f"{path} exists already", hint="use --force to overwrite it, or another --output")
    if not path.parent.is_dir():
        raise UsageError(f"no such directory: {path.parent}", hint="make it first, or use another --output")


def answer_with(given: Mapping[str, Any], text: str) -> None:
    """Write a command's answer where its options say: to stdout, or to the file of --output."""
    path = given.get("output")
    if path is None:
        write_answer(text)
        return
    write_file(path, text)
    print(f"wrote {path}", file=sys.stderr)


def write_file(path: Path, text: str) -> None:
    """Write `text` to `path` through a temporary file beside it, so that a crash leaves the old file or the new one.

    Raises: UsageError when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="use another --output") from error
