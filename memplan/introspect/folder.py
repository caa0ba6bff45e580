"""A place where a model's files lie: a directory on disk, or a repository on the hub.

Readers of checkpoints see only this interface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from memplan.errors import CorruptFile
from memplan.introspect.bytesource import ByteSource, open_source
from memplan.introspect.jsonfile import read_json_text

Result = TypeVar("Result")
PIPELINE_FILE = "model_index.json"
_MOST_ENTRIES = 10_000


class Folder(Protocol):
    """Files under plain names, or `part/name` for the parts of a pipeline."""

    @property
    def label(self) -> str:
        """What the place is called in messages."""
        ...

    @property
    def names(self) -> frozenset[str]: ...

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """Return a small file, at most `limit_bytes` and one of it."""
        ...

    def open(self, name: str) -> AbstractContextManager[ByteSource]:
        """Open a file for reading at offsets."""
        ...

    def each(self, read_one: Callable[[str], Result], names: Sequence[str]) -> list[Result]:
        """Apply `read_one` to every name, several at once where waiting for a network pays for it."""
        ...

    def check_shards(self, names: Sequence[str]) -> None:
        """Raise CorruptFile for a shard that is a link out of the place."""
        ...

    def recall(self, name: str) -> object | None:
        """Return the JSON value that was kept under a name for these very files; None for none."""
        ...

    def keep(self, name: str, value: Callable[[], object]) -> None:
        """Keep a JSON value for the next time, where fetching costs more than keeping."""
        ...


class LocalFolder:
    """A directory on disk; of a pipeline, also the directories just below."""

    def __init__(self, path: Path, label: str | None = None) -> None:
        self.path = path
        self.label = label or str(path)
        self.names: frozenset[str] = frozenset(_names(path))

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        return read_json_text(self.path / name, limit_bytes=limit_bytes)

    def open(self, name: str) -> AbstractContextManager[ByteSource]:
        return open_source(self.path / name)

    def each(self, read_one: Callable[[str], Result], names: Sequence[str]) -> list[Result]:
        return [read_one(name) for name in names]

    def check_shards(self, names: Sequence[str]) -> None:
        for name in names:
            self._check_link(self.path / name)

    def recall(self, name: str) -> object | None:
        return None

    def keep(self, name: str, value: Callable[[], object]) -> None:
        """Nothing to keep: the files are here."""

    def _check_link(self, path: Path) -> None:
        """Links lead out of a directory only in the Hugging Face cache, whose snapshots are links into `blobs`."""
        try:
            real, home = path.resolve(strict=True), self.path.resolve()
        except (OSError, RuntimeError):
            raise CorruptFile(f"broken link: `{path}`", hint="download it again") from None
        blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
        if not real.is_relative_to(home) and not real.is_relative_to(blobs):
            raise CorruptFile(
                f"a shard leads out of its directory: `{path}` is a link to `{real}`",
                hint="name the directory where the files really are",
            )


class PartFolder:
    """One part of a pipeline: the files under `part/` of another folder."""

    def __init__(self, whole: Folder, part: str) -> None:
        self._whole, self._prefix = whole, f"{part}/"
        self.label = f"{whole.label}/{part}"
        self.names = frozenset(name[len(self._prefix) :] for name in whole.names if name.startswith(self._prefix))

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        return self._whole.read(self._prefix + name, limit_bytes=limit_bytes)

    def open(self, name: str) -> AbstractContextManager[ByteSource]:
        return self._whole.open(self._prefix + name)

    def each(self, read_one: Callable[[str], Result], names: Sequence[str]) -> list[Result]:
        return self._whole.each(read_one, names)

    def check_shards(self, names: Sequence[str]) -> None:
        self._whole.check_shards([self._prefix + name for name in names])

    def recall(self, name: str) -> object | None:
        return self._whole.recall(self._prefix + name)

    def keep(self, name: str, value: Callable[[], object]) -> None:
        self._whole.keep(self._prefix + name, value)


def _names(path: Path) -> list[str]:
    """The files of a directory; those that cannot be listed are left out."""
    names = [entry.name for entry in _entries(path) if not entry.is_dir()]
    if PIPELINE_FILE in names:
        parts = [entry for entry in _entries(path) if entry.is_dir()]
        names += [f"{part.name}/{entry.name}" for part in parts for entry in _entries(part)]
    return names


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())[:_MOST_ENTRIES]
    except OSError:
        return []
