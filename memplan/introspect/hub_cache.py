"""What of the hub is on this disk: the Hugging Face cache, which is read, and memplan's own, which keeps headers.

The Hugging Face cache has `models--org--name/refs/REVISION` (a commit) and `snapshots/COMMIT/` (links to files). Our
own keeps one JSON file per thing fetched, under repository and commit, each with a checksum of its content: a file that
was cut off or changed is ignored and fetched again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_FILE_BYTES = 1 << 28


def huggingface_home() -> Path:
    """Where huggingface_hub keeps its token and cache. Source: its documentation on environment variables."""
    home = os.environ.get("HF_HOME")
    return Path(home).expanduser() if home else _xdg_cache() / "huggingface"


def hub_cache_folder() -> Path:
    """The folder of the Hugging Face hub's cache."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return Path(folder).expanduser()
    return huggingface_home() / "hub"


def find_snapshot(repo: str, revision: str | None) -> tuple[Path, str] | None:
    """Return the folder and the commit of a cached snapshot; None where there is none of that revision."""
    root = hub_cache_folder() / ("models--" + repo.replace("/", "--"))
    wanted = revision or "main"
    if not is_revision(wanted):
        return None
    commit = wanted
    if not COMMIT.fullmatch(wanted):
        try:
            commit = (root / "refs" / wanted).read_text("ascii").strip()
        except (OSError, ValueError):
            return None
    if not COMMIT.fullmatch(commit):
        return None
    folder = root / "snapshots" / commit
    return (folder, commit) if folder.is_dir() else None


def is_revision(revision: str) -> bool:
    """Whether a text may be the name of a branch, tag or commit, and no path trick."""
    is_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}", revision) is not None
    return is_name and ".." not in revision and not revision.endswith(("/", ".lock"))


class OwnCache:
    """memplan's own cache of one hub. A cache that cannot be written is no error; one that lies is ignored."""

    def __init__(self, endpoint: str) -> None:
        host = quote(endpoint.split("://")[-1].strip("/"), safe="")
        self._root = _xdg_cache() / "memplan" / "hub" / host

    def load(self, repo: str, commit: str, name: str) -> object | None:
        """Return what was saved under a name; None when there is nothing sound."""
        return self._read(self._path(repo, commit, name))

    def save(self, repo: str, commit: str, name: str, value: object) -> None:
        """Keep a JSON value under a name."""
        self._write(self._path(repo, commit, name), value)

    def load_commit(self, repo: str, revision: str) -> str | None:
        """Return the commit that a revision was when it was last looked up."""
        commit = self._read(self._path(repo, "refs", revision))
        return commit if isinstance(commit, str) and COMMIT.fullmatch(commit) else None

    def save_commit(self, repo: str, revision: str, commit: str) -> None:
        self._write(self._path(repo, "refs", revision), commit)

    def _path(self, repo: str, folder: str, name: str) -> Path:
        return self._root / repo.replace("/", "--") / folder / (quote(name, safe="") + ".json")

    def _read(self, path: Path) -> object | None:
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_FILE_BYTES)
            checksum, _, text = data.partition(b"\n")
            if hashlib.sha256(text).hexdigest().encode() != checksum:
                return None
            value: object = json.loads(text)
        except (OSError, ValueError, RecursionError):
            return None
        return value

    def _write(self, path: Path, value: object) -> None:
        text = json.dumps(value, separators=(",", ":")).encode()
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise


def _xdg_cache() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME")
    return Path(folder).expanduser() if folder else Path("~/.cache").expanduser()
