"""Where header bytes come from: a local file, or anything else that can be read at an offset.

Readers of checkpoint formats see only this interface, so that the same code reads a file on disk, a file behind HTTP
range requests, and a fuzzer's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from memplan.errors import CorruptFile, SourceNotFound

_POINTER = b"version https://git-lfs"


class ByteSource(Protocol):
    """Bytes at offsets. `size_bytes` is the whole file's size, None where the other side does not tell."""

    @property
    def name(self) -> str: ...

    @property
    def size_bytes(self) -> int | None: ...

    def read(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`: fewer only where the file ends."""
        ...


class MemorySource:
    """Bytes that are already here."""

    def __init__(self, data: bytes, name: str = "memory", *, size_bytes: int | None = None) -> None:
        self._data = data
        self.name = name
        self.size_bytes: int | None = len(data) if size_bytes is None else size_bytes

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


class FileSource:
    """An open local file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self.name = name
        self.size_bytes: int | None = os.fstat(file.fileno()).st_size

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)


@contextmanager
def open_source(path: Path) -> Iterator[FileSource]:
    """Open a local file for reading at offsets.

    Raises: SourceNotFound when there is no such file or it may not be read; CorruptFile when it is no regular file.
    """
    try:
        if not path.is_file():
            raise _not_a_file(path)
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise SourceNotFound(f"cannot read `{path}`: {error.strerror or error}") from None
    with file:
        yield FileSource(file, str(path))


def _not_a_file(path: Path) -> SourceNotFound | CorruptFile:
    if path.exists():
        hint = "give a config.json, .safetensors, .gguf or a directory of them"
        return CorruptFile(f"not a regular file: `{path}`", hint=hint)
    if path.is_symlink():
        hint = "download it again: its target is gone"
        return SourceNotFound(f"broken link: `{path}`", hint=hint)
    return SourceNotFound(f"no such file: `{path}`")


def damaged(source: ByteSource, offset: int, found: str, *, expected: str, hint: str | None = None) -> CorruptFile:
    """The error for bytes that contradict the format: where they are, what was found and what belongs there."""
    if offset == 0:
        hint = pointer_hint(source.read(0, len(_POINTER))) or hint
    return CorruptFile(
        f"damaged file: `{source.name}`: at byte {offset}: {found}; expected {expected}",
        hint=hint or "download or write the file again",
    )


def pointer_hint(start: bytes) -> str | None:
    """What mends a file that begins with `start` when it is Git LFS's note of where the file is; None for any other."""
    if not start.startswith(_POINTER):
        return None
    return "this is a Git LFS pointer, not the file: run `git lfs pull` in its repository"


def read_exactly(source: ByteSource, offset: int, length: int, what: str) -> bytes:
    """Return exactly `length` bytes. Raises: CorruptFile where the file ends before that."""
    data = source.read(offset, length)
    if len(data) != length:
        found = f"the file ends after {offset + len(data)} bytes"
        raise damaged(source, offset, found, expected=f"{length} bytes of {what}")
    return data


def show(text: str) -> str:
    """A text from a file as it may be printed: short and without control characters."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 80 else f"{text[:77]}..."
