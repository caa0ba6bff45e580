"""Public data sets as specs: what to take of which repository, read through the `datasets` library when it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from memplan.errors import MissingExtra, Offline, SourceError, UsageError
from memplan.quantize.documents import Document, Part, calibration_folder, document_of
from memplan.records import dataclass

_KEYS = frozenset({"title", "domain", "licence", "source", "repository", "config", "column", "min_chars", "revision"})
_PART_KEYS = frozenset({"split", "files", "skip", "documents", "joined"})
# Documents are drawn from a buffer that reaches this far ahead.
_BUFFER_DOCUMENTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicPart:
    """What one part takes: a split (of some files, where the repository is large), after `skip` documents.

    `joined` takes the whole split in its order as one document, its rows with a blank line between them.
    """

    split: str
    documents: int = 0
    files: str | None = None
    skip: int = 0
    joined: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicSet:
    """A data set of the hub. `column` holds its text or messages; documents under `min_chars` are left out."""

    name: str
    title: str
    domain: str
    licence: str
    repository: str
    column: str
    parts: Mapping[str, PublicPart]
    config: str | None = None
    revision: str | None = None
    min_chars: int = 0


def load_spec(name: str, path: Path | None = None) -> PublicSet:
    """Return the spec of a public set. Raises: UsageError for a spec with unknown or missing keys."""
    from memplan.catalog.tables import read_yaml

    path = path or calibration_folder() / "sets" / f"{name}.yaml"
    raw = read_yaml(path.read_text(encoding="utf-8"), str(path))
    unknown = set(raw) - _KEYS - {"calibrate", "validate"}
    unknown |= {key for part in ("calibrate", "validate") for key in raw.get(part, {}) if key not in _PART_KEYS}
    if unknown:
        raise UsageError(f"unknown key in {path}: `{min(unknown)}`")
    try:
        return PublicSet(
            name=name,
            title=raw["title"],
            domain=raw["domain"],
            licence=raw["licence"],
            repository=raw["repository"],
            column=raw["column"],
            config=raw.get("config"),
            revision=raw.get("revision"),
            min_chars=int(raw.get("min_chars", 0)),
            parts={part: PublicPart(**raw[part]) for part in ("calibrate", "validate")},
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a whole spec: {error}") from error


def read_public_set(name: str, part: Part, *, max_documents: int, seed: int, offline: bool) -> list[Document]:
    """Return documents of one part of a named set. Raises: Offline when it must not be asked; as `read_documents`."""
    spec = load_spec(name)
    if offline:
        raise Offline(
            f"the text set `{spec.name}` is {spec.repository} on the hub, and --offline was given",
            hint="use builtin, or a file or folder of your own",
        )
    return read_documents(spec, part, max_documents=max_documents, seed=seed)


def read_documents(spec: PublicSet, part: Part, *, max_documents: int, seed: int) -> list[Document]:
    """Return documents of one part, drawn with `seed` from a stream.

    Raises: MissingExtra without the `datasets` library; SourceError when the set cannot be read.
    """
    chosen = spec.parts[part]
    rows = _rows(spec, chosen, end=_end(spec, chosen), seed=seed)
    wanted = min(max_documents or chosen.documents, chosen.documents)
    try:
        return _joined(spec, rows) if chosen.joined else list(islice(_long_enough(spec, rows), wanted))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(spec, error) from error


def _long_enough(spec: PublicSet, rows: Iterable[Mapping[str, Any]]) -> Iterator[Document]:
    for number, row in enumerate(rows):
        document = document_of(row, domain=spec.domain, origin=f"{spec.name}:{number}", column=spec.column)
        if len(document.plain) >= spec.min_chars and document.plain.strip():
            yield document


def _joined(spec: PublicSet, rows: Iterable[Mapping[str, Any]]) -> list[Document]:
    text = "\n\n".join(str(row[spec.column]) for row in rows)
    return [Document(text=text, domain=spec.domain, origin=spec.name)]


def _end(spec: PublicSet, part: PublicPart) -> int | None:
    """The row at which another part of the same split begins, which this one must not reach."""
    others = (each for each in spec.parts.values() if (each.split, each.files) == (part.split, part.files))
    return min((each.skip for each in others if each.skip > part.skip), default=None)


def _rows(spec: PublicSet, part: PublicPart, *, end: int | None, seed: int) -> Iterable[Mapping[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtra(
            f"the text set `{spec.name}` needs the datasets library",
            hint="pip install 'memplan[quantize]', or use builtin, a .jsonl file or a folder",
        ) from error
    try:
        rows = datasets.load_dataset(
            spec.repository,
            spec.config,
            split=part.split,
            data_files=part.files,
            revision=spec.revision,
            streaming=True,
        )
        rows = rows.skip(part.skip) if part.skip else rows
        rows = rows.take(end - part.skip) if end is not None else rows
        if not part.joined:
            rows = rows.shuffle(seed=seed, buffer_size=_BUFFER_DOCUMENTS)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(spec, error) from error
    found: Iterable[Mapping[str, Any]] = rows
    return found


def _unreadable(spec: PublicSet, error: Exception) -> SourceError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return SourceError(
        f"cannot read the text set `{spec.name}` ({spec.repository}): {reason}",
        hint="use builtin, which needs no network, or a file or folder of your own",
    )
