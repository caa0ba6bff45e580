"""Text that quantization calibrates on and is judged on: found by name or path, read as documents, kept apart.

A set is one of: `builtin` (our own texts of four domains, which need no network) or one of its domains (`code`); a
public data set that `calibration/sets/NAME.yaml` describes; a .jsonl or .txt file; a folder of files. Several with
commas are one set. Every set has two parts that share no document: one to calibrate on, one to validate on.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from memplan.errors import CorruptFile, UsageError, did_you_mean
from memplan.quantize.documents import Document, Part, calibration_folder, document_of
from memplan.records import dataclass

PARTS: tuple[Part, ...] = ("calibrate", "validate")
DOMAINS = ("general", "code", "math", "medical")
BUILTIN = "builtin"

# Where a file or folder does not say which part a document is for, one in this many validates.
_VALIDATED_ONE_IN = 4
_SUFFIXES = (".jsonl", ".txt", ".md", ".py", ".rst")
_MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSet:
    """The documents of one part of a set, in a fixed order."""

    name: str
    part: Part
    documents: tuple[Document, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains in the order in which they first come up."""
        return tuple(dict.fromkeys(document.domain for document in self.documents))

    @property
    def digest(self) -> str:
        """A hash of what is in the set: two runs with the same digest saw the same text in the same order."""
        content = hashlib.sha256()
        for document in self.documents:
            content.update(f"{document.domain}\0{document.plain}\1".encode())
        return content.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainStatistics:
    """How much text a set has of a domain, in characters; lengths are of single documents."""

    domain: str
    num_documents: int
    total_chars: int
    shortest_chars: int
    median_chars: int
    longest_chars: int


def spec_names() -> tuple[str, ...]:
    """The public data sets that are described."""
    return tuple(sorted(path.stem for path in (calibration_folder() / "sets").glob("*.yaml")))


def read_set(name: str, part: Part, *, max_documents: int = 0, seed: int = 0, offline: bool = False) -> TextSet:
    """Return one part of a set, shuffled by `seed`; with `max_documents`, that many of every domain.

    Raises: UsageError for an unknown name or an empty part; CorruptFile for a file that cannot be read; Offline,
    MissingExtra or SourceError for a public set that cannot be had.
    """
    documents: list[Document] = []
    for each in name.split(","):
        documents += _documents(each.strip(), part, max_documents=max_documents, seed=seed, offline=offline)
    documents = [document for document in documents if document.plain.strip()]
    if not documents:
        raise UsageError(f"no text to {part} on in `{name}`", hint="see `calibration/README.md` for what a set may be")
    random.Random(seed).shuffle(documents)
    if max_documents:
        documents = _at_most(documents, max_documents)
    return TextSet(name=name, part=part, documents=tuple(documents))


def statistics(texts: TextSet) -> tuple[DomainStatistics, ...]:
    """Return how much there is of each domain."""
    found = []
    for domain in texts.domains:
        sizes = sorted(len(document.plain) for document in texts.documents if document.domain == domain)
        found.append(
            DomainStatistics(
                domain=domain,
                num_documents=len(sizes),
                total_chars=sum(sizes),
                shortest_chars=sizes[0],
                median_chars=sizes[len(sizes) // 2],
                longest_chars=sizes[-1],
            )
        )
    return tuple(found)


def _documents(name: str, part: Part, *, max_documents: int, seed: int, offline: bool) -> list[Document]:
    if name == BUILTIN or name in DOMAINS:
        wanted = DOMAINS if name == BUILTIN else (name,)
        return [document for domain in wanted for document in _builtin(domain, part)]
    if name in spec_names():
        from memplan.quantize.public_sets import read_public_set

        return read_public_set(name, part, max_documents=max_documents, seed=seed, offline=offline)
    path = Path(name).expanduser()
    if path.is_dir():
        return _of_folder(path, part)
    if path.is_file():
        return _chosen(_of_file(path, domain=path.stem), part)
    known = [BUILTIN, *DOMAINS, *spec_names()]
    hint = did_you_mean(name, known) or f"give a .jsonl file, a folder of texts, or one of {', '.join(known)}"
    raise UsageError(f"unknown text set: `{name}`", hint=hint)


def _builtin(domain: str, part: Part) -> list[Document]:
    folder = calibration_folder() / domain / part
    return [
        Document(text=path.read_text(encoding="utf-8"), domain=domain, origin=f"{domain}/{part}/{path.name}")
        for path in sorted(folder.glob("*.*"))
    ]


def _of_folder(folder: Path, part: Part) -> list[Document]:
    """Files of a folder. Folders `calibrate` and `validate`, at the top or in a folder per domain, say what is what."""
    try:
        files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in _SUFFIXES and path.is_file()]
    except OSError as error:
        raise UsageError(f"cannot read {folder}: {error}", hint="name a folder that holds nothing but texts") from None
    if not files:
        raise UsageError(f"no text in {folder}", hint=f"it holds files named {', '.join('*' + s for s in _SUFFIXES)}")
    says = any(name in path.relative_to(folder).parts[:-1] for path in files for name in PARTS)
    found: list[Document] = []
    for path in files:
        above = path.relative_to(folder).parts[:-1]
        if says and part not in above:
            continue
        names = [name for name in above if name not in PARTS]
        found += _of_file(path, domain=names[0] if names else folder.resolve().name)
    return found if says else _chosen(found, part)


def _chosen(documents: Sequence[Document], part: Part) -> list[Document]:
    """The documents of a part, by a hash of what they say: the same document is never in both."""
    return [document for document in documents if _is_validation(document.plain) == (part == "validate")]


def _is_validation(text: str) -> bool:
    return hashlib.sha256(" ".join(text.split()).encode()).digest()[0] % _VALIDATED_ONE_IN == 0


def _of_file(path: Path, *, domain: str) -> list[Document]:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise UsageError(f"{path} is over 1 GiB", hint="take a sample of it: a few thousand documents are plenty")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptFile(f"cannot read {path}: {error}", hint="texts are UTF-8") from error
    if path.suffix.lower() != ".jsonl":
        return [Document(text=text, domain=domain, origin=str(path))]
    return list(_of_lines(path, text, domain))


def _of_lines(path: Path, text: str, domain: str) -> Iterator[Document]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        origin = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CorruptFile(f"{origin} is not JSON: {error}", hint="every line of a .jsonl is one object") from error
        if isinstance(record, str):
            record = {"text": record}
        if not isinstance(record, dict):
            raise CorruptFile(f"{origin} is no object", hint='write {"text": "..."} on every line')
        yield document_of(record, domain=domain, origin=origin)


def _at_most(documents: Sequence[Document], count: int) -> list[Document]:
    """The first `count` documents of every domain."""
    seen: dict[str, int] = {}
    kept = []
    for document in documents:
        seen[document.domain] = seen.get(document.domain, 0) + 1
        if seen[document.domain] <= count:
            kept.append(document)
    return kept
