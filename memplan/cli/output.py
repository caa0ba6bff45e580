"""Where a command's answer goes: the real stdout, or a file that is written whole or not at all.

`guarded_stdout` moves the process's file descriptor 1 onto stderr for the time of a command, so that a stray print of a
library or of a child process never mixes with the answer.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from memplan.errors import UsageError


@contextmanager
def guarded_stdout() -> Iterator[TextIO]:
    """Yield the stream that the answer goes to; meanwhile everything else that is printed goes to stderr."""
    sys.stdout.flush()
    try:
        answer_fd = os.dup(1)
    except OSError:
        yield sys.stdout
        return
    os.dup2(2, 1)
    answer = os.fdopen(answer_fd, "w", encoding="utf-8", errors="replace")
    try:
        yield answer
        answer.flush()
    finally:
        sys.stdout.flush()
        os.dup2(answer.fileno(), 1)
        answer.close()


def write_file(path: Path, text: str, *, force: bool) -> None:
    """Write `text` to `path` through a temporary file beside it, so that a crash leaves the old file or the new one.

    Raises: UsageError when the file exists and `force` is not set, or cannot be written.
    """
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", hint="use --force to overwrite it, or another --output")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent or Path(), prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(name, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
