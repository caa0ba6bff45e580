"""Documents out of unpacked packages: one reader per kind of file, each yielding plain text."""

from __future__ import annotations

import gzip
import html
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_SHORTEST_CHARS = 200
_SKIPPED_IN_HTML = re.compile(r"<(script|style|head|nav)\b.*?</\1>", re.DOTALL | re.IGNORECASE)
_BLOCK_ENDS = re.compile(r"</(p|div|li|h[1-6]|tr|dt|dd|pre|section)>|<br\s*/?>", re.IGNORECASE)
_TAG = re.compile(r"<[^>]+>")
_PRE = re.compile(r"<pre\b[^>]*>(.*?)</pre>", re.DOTALL | re.IGNORECASE)


def r_novels(folder: Path) -> Iterator[str]:
    """The novels of an R package's lazy-load data: character vectors with one line of a book in each element.

    A chunk of the file is a big-endian length and a zlib stream in R's XDR serialization, in which a character vector
    is the type 16, a count, and that many strings of type 9, each with a length.
    """
    data = next(folder.rglob("Rdata.rdb")).read_bytes()
    at = 0
    while at < len(data):
        plain = zlib.decompressobj()
        chunk = plain.decompress(data[at + 4 :])
        at = len(data) - len(plain.unused_data)
        for lines in _string_vectors(chunk):
            if len(lines) > 1000:
                yield from _chapters(lines)


def _string_vectors(chunk: bytes) -> Iterator[list[str]]:
    for start in re.finditer(rb"\x00\x00\x00\x10(?=....\x00\x04\x00\x09)", chunk, re.DOTALL):
        at = start.end() + 4
        (count,) = struct.unpack_from(">i", chunk, start.end())
        lines = []
        for _ in range(count):
            flags, length = struct.unpack_from(">ii", chunk, at)
            if flags & 0xFF != 9 or length < 0:
                break
            lines.append(chunk[at + 8 : at + 8 + length].decode("utf-8", "replace"))
            at += 8 + length
        yield lines


def _chapters(lines: list[str]) -> Iterator[str]:
    chapter: list[str] = []
    for line in lines:
        if re.match(r"(chapter|volume|letter)\s+(\d+|[ivxl]+|the)\b", line, re.IGNORECASE) and len(chapter) > 20:
            yield "\n".join(chapter)
            chapter = []
        chapter.append(line)
    yield "\n".join(chapter)


def classics(folder: Path) -> Iterator[str]:
    """Three books of the old text corpora for compressors, in pieces at blank lines."""
    for name in ("alice29.txt", "asyoulik.txt", "plrabn12.txt"):
        text = next(folder.rglob(name)).read_text(encoding="latin-1").replace("\x1a", "")
        yield from _pieces(tidy(text), 12_000)


def dictionary(folder: Path) -> Iterator[str]:
    """A dictionary in the format of the dict server, in pieces."""
    text = gzip.decompress(next(folder.rglob("*.dict.dz")).read_bytes()).decode("utf-8", "replace")
    yield from _pieces(text, 6_000)


def glosses(folder: Path) -> Iterator[str]:
    """Words and what they mean, sixty to a document, from the database files of WordNet."""
    entries = []
    for path in sorted(folder.rglob("data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            fields, gloss = line.split("|", 1)
            words = fields.split()
            names = [words[4 + 2 * i].replace("_", " ") for i in range(int(words[3], 16))]
            entries.append(f"{', '.join(names)}: {gloss.strip()}.")
    for start in range(0, len(entries), 60):
        yield "\n".join(entries[start : start + 60])


def countries(folder: Path) -> Iterator[str]:
    """Countries described under headings, from JSON."""
    for path in sorted(folder.rglob("*.json")):
        if path.parent.name == "package" or path.name == "package.json":
            continue
        country = json.loads(path.read_text(encoding="utf-8"))
        yield "\n".join(_described(country))


def _described(node: object, name: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        if "text" in node:
            yield f"{name}: {node['text']}" if name else str(node["text"])
        elif name:
            yield f"\n{name}\n"
        for key, value in node.items():
            if key != "text":
                yield from _described(value, key)
    elif isinstance(node, str) and node:
        yield f"{name}: {node}"


def python_manual(folder: Path) -> Iterator[str]:
    """The sources of the Python manual, without its change logs."""
    for path in sorted(folder.rglob("*.rst.txt")):
        if "changelog" not in path.name:
            yield path.read_text(encoding="utf-8")


def postgresql_manual(folder: Path) -> Iterator[str]:
    """The chapters of the PostgreSQL manual, without release notes."""
    for path in sorted(folder.rglob("*.html")):
        if not path.name.startswith(("release", "bookindex", "errcodes", "features")):
            yield _text_of_html(path.read_text(encoding="utf-8", errors="replace"))


def rust_books(folder: Path) -> Iterator[str]:
    """The books on Rust that come with its compiler."""
    for book in ("book", "reference", "nomicon", "rust-by-example", "cargo", "edition-guide", "embedded-book"):
        for path in sorted(folder.rglob(f"html/{book}/**/*.html")):
            if path.name not in ("print.html", "SUMMARY.html", "toc.html"):
                yield _text_of_html(path.read_text(encoding="utf-8", errors="replace"))


def django_manual(folder: Path) -> Iterator[str]:
    """Django's manual, without release notes."""
    yield from _files(folder, "docs", "*.txt", without=("releases", "_ext", "man"))


def sqlalchemy_manual(folder: Path) -> Iterator[str]:
    """SQLAlchemy's manual, without its change log."""
    yield from _files(folder, "doc", "*.rst", without=("changelog",))


def python_sources(folder: Path) -> Iterator[str]:
    """Modules of Python and the manual beside them, without tests."""
    yield from _files(folder, "networkx", "*.py", without=("tests",))
    yield from _files(folder, "doc", "*.rst", without=("release",))


def sympy_text(folder: Path) -> Iterator[str]:
    """SymPy's manual, and its modules without tests and generated tables."""
    yield from _files(folder, "doc", "*.rst", without=("releases",))
    yield from _files(folder, "sympy", "*.py", without=("tests", "benchmarks", "_antlr", "hyperexpand", "rubi"))


def _files(folder: Path, part: str, pattern: str, *, without: tuple[str, ...]) -> Iterator[str]:
    for top in sorted(folder.iterdir()):
        for path in sorted((top / part).rglob(pattern)):
            if not any(word in path.parts for word in without) and path.stat().st_size < 150_000:
                yield path.read_text(encoding="utf-8", errors="replace")


def _pieces(text: str, size_chars: int) -> Iterator[str]:
    """The text cut at the blank line after every `size_chars` characters."""
    while len(text) > size_chars:
        cut = text.find("\n\n", size_chars)
        if cut < 0:
            break
        yield text[:cut]
        text = text[cut + 2 :]
    yield text


def _text_of_html(page: str) -> str:
    main = re.search(r"<main\b.*?</main>", page, re.DOTALL)
    page = _SKIPPED_IN_HTML.sub("", main.group(0) if main else page)
    kept: list[str] = []

    def keep(match: re.Match[str]) -> str:
        kept.append(match.group(1))
        return f"\n\x00{len(kept) - 1}\x00\n"

    page = _PRE.sub(keep, page)
    page = _BLOCK_ENDS.sub("\n", re.sub(r"\s+", " ", page))
    page = re.sub(r" ?\x00(\d+)\x00 ?", lambda match: "\n" + kept[int(match.group(1))] + "\n", page)
    return tidy(html.unescape(_TAG.sub("", page)))


def tidy(text: str) -> str:
    """One spelling of line ends, no trailing spaces, at most one blank line in a row."""
    text = re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n").replace("\t", "    ").replace("\u00a0", " "))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def long_enough(text: str) -> bool:
    """Whether a document says anything."""
    return len(text) >= _SHORTEST_CHARS
