"""The Hugging Face hub, read for headers only: file lists, configs, and the first bytes of weights by range.

With the standard library alone. `HF_ENDPOINT`, `HF_TOKEN` (or the token file), `HF_HUB_OFFLINE` and proxies are
respected. What the hub refuses is told apart: a repository, revision or file that is not there, a gated one, a token
that is not taken, a hub that cannot be reached or is too busy.

Source: the hub's API as its documentation and huggingface_hub 1.x describe it (`/api/models/...`, `/resolve/...`,
`X-Error-Code`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from memplan.errors import GatedModel, Offline, SourceError, SourceNotFound, UsageError
from memplan.introspect.bytesource import show
from memplan.introspect.folder import Result
from memplan.introspect.hub_cache import COMMIT, OwnCache, huggingface_home, is_revision
from memplan.introspect.web import Answer, Web

DEFAULT_ENDPOINT = "https://huggingface.co"
_REPO = re.compile(r"(?:[A-Za-z0-9](?:[\w.-]{0,95})/)?[A-Za-z0-9_](?:[\w.-]{0,95})", re.ASCII)
_MAX_LIST_BYTES = 1 << 26
_MAX_FILES = 100_000
_LEAST_READ_BYTES = 100_000  # the header of nearly every shard is shorter
_PARALLEL = 8
_TRUE = frozenset({"1", "on", "yes", "true"})


def is_repo_id(text: str) -> bool:
    """Whether a text has the form of a hub id, `organisation/name` or an old bare `name`."""
    return _REPO.fullmatch(text) is not None and ".." not in text and "--" not in text and not text.endswith(".git")


def is_offline(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment rules the network out."""
    return any(environment.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def find_token() -> str | None:
    """Return the user's token: from `HF_TOKEN`, else from the file that `hf auth login` writes; None without one.

    Raises: UsageError when it cannot be one. It is never shown.
    """
    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() in _TRUE:
        return None
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    where = "HF_TOKEN"
    if not token:
        path = Path(os.environ.get("HF_TOKEN_PATH") or huggingface_home() / "token").expanduser()
        where = str(path)
        try:
            token = path.read_text("utf-8")[:10_000]
        except (OSError, ValueError):
            return None
    token = token.strip()
    if not token:
        return None
    if not re.fullmatch(r"[\x21-\x7e]{1,1000}", token):
        raise UsageError(
            f"the token in {where} has blanks or signs that no token has", hint="paste it again, on one line"
        )
    return token


class _NoWeb:
    """Stands for a network that must not be used."""

    def get(self, url: str, *, limit_bytes: int) -> Answer:
        raise Offline("that part of the model is not on this disk", hint="leave --offline out, or check the network")

    def get_range(self, url: str, offset: int, length: int) -> Answer:
        return self.get(url, limit_bytes=length)

    def close(self) -> None:
        """Nothing is open."""


NO_WEB = _NoWeb()


class Hub:
    """A hub, and memplan's cache of it. With `NO_WEB` only the cache answers."""

    def __init__(
        self, endpoint: str | None = None, *, token: str | None = None, web: Web | _NoWeb | None = None
    ) -> None:
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self._has_token = token is not None
        self.web = web or Web(self.endpoint, token=token, timeout_s=_timeout_s())
        self.cache = OwnCache(self.endpoint)

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *exception: object) -> None:
        self.web.close()

    def repository(self, repo: str, revision: str | None) -> HubFolder:
        """Return the files of a repository at a revision (a branch, tag or commit; `main` for None).

        Raises: SourceNotFound, GatedModel, Offline, SourceError.
        """
        wanted = revision or "main"
        check_revision(wanted)
        if COMMIT.fullmatch(wanted) and (known := self.cached_repository(repo, wanted)):
            return known
        answer = self.web.get(
            f"{self.endpoint}/api/models/{repo}/revision/{quote(wanted, safe='')}", limit_bytes=_MAX_LIST_BYTES
        )
        if answer.status != 200:
            raise self._refusal(answer, repo, wanted, None)
        commit, names = _file_list(answer, repo)
        self.cache.save(repo, commit, "files", sorted(names))
        self.cache.save_commit(repo, wanted, commit)
        return HubFolder(self, repo, commit, names)

    def cached_repository(self, repo: str, revision: str | None) -> HubFolder | None:
        """Return a repository as it was when it was last fetched; None when it never was."""
        wanted = revision or "main"
        commit = wanted if COMMIT.fullmatch(wanted) else self.cache.load_commit(repo, wanted)
        names = self.cache.load(repo, commit, "files") if commit else None
        if commit is None or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        return HubFolder(self, repo, commit, frozenset(names))

    def file_url(self, repo: str, commit: str, name: str) -> str:
        return f"{self.endpoint}/{repo}/resolve/{commit}/{quote(name)}"

    def checked(self, answer: Answer, repo: str, commit: str, name: str) -> Answer:
        """Return an answer that has the file. Raises: what the hub's refusal means."""
        if answer.status in (200, 206) or (answer.status == 416 and answer.total_bytes is not None):
            return answer
        raise self._refusal(answer, repo, commit, name)

    def _refusal(self, answer: Answer, repo: str, revision: str, name: str | None) -> SourceError:
        """The error that a status and the hub's own code stand for."""
        status, code = answer.status, answer.headers.get("x-error-code", "")
        page = f"{self.endpoint}/{repo}"
        if code == "GatedRepo":
            ask = (
                "your token has no access yet: ask for it"
                if self._has_token
                else "set HF_TOKEN, after you accept the terms"
            )
            return GatedModel(f"gated model: `{repo}`", hint=f"{ask} at {page}; or name it by a catalogue alias")
        if code == "RevisionNotFound":
            return SourceNotFound(
                f"no revision `{revision}` of `{repo}`", hint=f"look at {page}/refs for the ones it has"
            )
        if code == "EntryNotFound" or (status == 404 and name is not None and code != "RepoNotFound"):
            return SourceNotFound(f"`{repo}` has no file `{show(name or '')}` at `{revision[:12]}`")
        if "credentials" in answer.headers.get("x-error-message", "").lower():
            return GatedModel("the hub does not take your token", hint="make a new one and set HF_TOKEN, or unset it")
        if status in (401, 404) or code == "RepoNotFound":
            hint = "check the spelling" + ("" if self._has_token else "; for a private model set HF_TOKEN")
            return SourceNotFound(f"no such model on the hub: `{repo}`", hint=hint)
        if status == 403:
            hint = "your token may not read it" if self._has_token else "set HF_TOKEN"
            return GatedModel(f"the hub refuses `{repo}`", hint=hint)
        if status == 429:
            hint = "wait a few minutes" + ("" if self._has_token else ", or set HF_TOKEN for a higher limit")
            return Offline("the hub asks to slow down (429)", hint=hint)
        if status >= 500:
            return Offline(f"the hub is failing ({status})", hint="try again later, or use --offline")
        return SourceError(f"the hub answered {status} for `{repo}`")


class HubFolder:
    """One commit of a repository. What is read of it is kept in memplan's own cache."""

    def __init__(self, hub: Hub, repo: str, commit: str, names: frozenset[str]) -> None:
        self._hub = hub
        self.repo = repo
        self.commit = commit
        self.names = names
        self.label = f"{repo}@{commit[:7]}"

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        kept = self.recall(f"file:{name}")
        if isinstance(kept, str):
            return kept.encode("utf-8", "surrogateescape")
        url = self._hub.file_url(self.repo, self.commit, name)
        answer = self._hub.web.get(url, limit_bytes=limit_bytes + 1)
        self._hub.checked(answer, self.repo, self.commit, name)
        self.keep(f"file:{name}", lambda: answer.body.decode("utf-8", "surrogateescape"))
        return answer.body

    @contextmanager
    def open(self, name: str) -> Iterator[RemoteFile]:
        yield RemoteFile(self._hub, self.repo, self.commit, name)

    def each(self, read_one: Callable[[str], Result], names: Sequence[str]) -> list[Result]:
        if len(names) == 1:
            return [read_one(names[0])]
        pool = ThreadPoolExecutor(min(_PARALLEL, max(len(names), 1)))
        try:
            return list(pool.map(read_one, names))
        finally:
            pool.shutdown(cancel_futures=True)

    def check_shards(self, names: Sequence[str]) -> None:
        """Nothing to check: a repository has no links."""

    def recall(self, name: str) -> object | None:
        return self._hub.cache.load(self.repo, self.commit, name)

    def keep(self, name: str, value: Callable[[], object]) -> None:
        self._hub.cache.save(self.repo, self.commit, name, value())


class RemoteFile:
    """A file of a repository, read by ranges. The last range is kept, so that small reads cost one request."""

    def __init__(self, hub: Hub, repo: str, commit: str, name: str) -> None:
        self._hub, self._repo, self._commit, self._file = hub, repo, commit, name
        self.name = f"{repo}@{commit[:7]}/{name}"
        self.size_bytes: int | None = None
        self._block = b""
        self._start = 0
        self._is_end = False

    def read(self, offset: int, length: int) -> bytes:
        at = offset - self._start
        has = 0 <= at <= len(self._block) and (at + length <= len(self._block) or self._is_end)
        if not has and length:
            self._fetch(offset, max(length, _LEAST_READ_BYTES))
            at = 0
        return self._block[at : at + length]

    def _fetch(self, offset: int, length: int) -> None:
        url = self._hub.file_url(self._repo, self._commit, self._file)
        answer = self._hub.web.get_range(url, offset, length)
        self._hub.checked(answer, self._repo, self._commit, self._file)
        self.size_bytes = answer.total_bytes if answer.total_bytes is not None else self.size_bytes
        self._block = answer.body if answer.status != 416 else b""
        self._start = offset
        end = offset + len(self._block)
        self._is_end = end >= self.size_bytes if self.size_bytes is not None else len(self._block) < length


def check_revision(revision: str) -> None:
    """Raise UsageError for what can be no branch, tag or commit."""
    if not is_revision(revision):
        raise UsageError(f"not a revision: `{show(revision)}`", hint="give a branch, a tag or a commit")


def _file_list(answer: Answer, repo: str) -> tuple[str, frozenset[str]]:
    """Return the commit and the files that the hub's description of a repository names."""
    try:
        raw = json.loads(answer.body)
    except (ValueError, RecursionError):
        raw = None
    commit = raw.get("sha") if isinstance(raw, dict) else None
    files = raw.get("siblings") if isinstance(raw, dict) else None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(files, list):
        hint = "HF_ENDPOINT names something that is no hub, or a proxy answers in its place"
        raise SourceError(f"the hub's description of `{repo}` is not understood", hint=hint)
    names = [file.get("rfilename") for file in files[:_MAX_FILES] if isinstance(file, dict)]
    return commit, frozenset(name for name in names if isinstance(name, str) and 0 < len(name) <= 1000)


def _timeout_s() -> float:
    """Seconds to wait for an answer; huggingface_hub's own variable sets it."""
    try:
        seconds = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", ""))
    except ValueError:
        return 10.0
    return seconds if 0 < seconds <= 600 else 10.0
