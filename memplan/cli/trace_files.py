"""Recorded requests: files of them read a line at a time, whatever program wrote them.

Known are the columns of public traces (Azure, BurstGPT, Mooncake), conversations as ShareGPT or OpenAI write them, logs
of an OpenAI-style endpoint with their `usage`, and the request lines of vLLM's own log. What a line says is read by
`trace_lines` and `trace_logs`; this module knows files: encodings, sizes, heads of tables, where an error is.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from memplan.cli.trace_lines import BadLine, Lines, of_columns, of_object
from memplan.cli.trace_logs import EngineLog, is_log_line
from memplan.errors import UsageError
from memplan.records import dataclass
from memplan.simulate.traces import TracedRequest

MAX_REQUESTS = 5_000_000
_MAX_LINE_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_LINES_TO_A_LOG = 20_000
_Reader = Callable[[Mapping[str, Any], Lines], list[TracedRequest]]
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_HINT = "a trace is JSON lines, a CSV with a head, or a log with one request a line; docs/simulate.md has the layouts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The requests of a file in its order, the layout that it was taken for, and what was estimated or left out."""

    requests: tuple[TracedRequest, ...]
    layout: str
    notes: tuple[str, ...]

    @property
    def has_times(self) -> bool:
        return all(request.arrival_s is not None for request in self.requests)


def read_trace(path: Path, *, most: int = MAX_REQUESTS) -> Trace:
    """Return the first `most` requests of a trace.

    Raises: UsageError for a file that does not read, with the line, or that holds no request.
    """
    try:
        with path.open("rb") as stream:
            lines = Lines()
            requests = tuple(_first(_requests(stream, path, lines), most))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint=_HINT) from None
    if not requests:
        raise UsageError(f"{path} holds no request{lines.why_none()}", hint=_HINT)
    return Trace(requests=requests, layout=lines.layout, notes=lines.notes(path.name))


def _first(requests: Iterator[TracedRequest], most: int) -> Iterator[TracedRequest]:
    for _, request in zip(range(most), requests, strict=False):
        yield request


def _requests(stream: BinaryIO, path: Path, lines: Lines) -> Iterator[TracedRequest]:
    """Choose by the first line that is not empty how the file is read."""
    first = _first_line(stream, path)
    if path.suffix.lower() not in (".csv", ".tsv"):
        if first.startswith("["):
            rest = first[1:].lstrip()
            if not rest or rest.startswith("{"):
                yield from _of_array(stream, path, lines)
                return
        if first.startswith("{"):
            yield from _of_json_lines(stream, path, lines)
            return
        if ("," not in first and "\t" not in first) or is_log_line(first):
            yield from _of_log(stream, path, lines)
            return
    yield from _of_table(stream, path, lines, "\t" if "\t" in first else ",")


def _first_line(stream: BinaryIO, path: Path) -> str:
    """The beginning of the first line that is not empty; an array may be one line of a gigabyte."""
    blank = 0
    while head := stream.read(_CHUNK_BYTES):
        if b"\0" in head:
            raise UsageError(f"{path}, line {blank + 1}: binary data, not a trace", hint=_HINT)
        if text := head.decode("utf-8", "replace").lstrip("\ufeff").strip():
            stream.seek(0)
            return text.partition("\n")[0].strip()
        blank += head.count(b"\n")
    raise UsageError(f"{path} is empty", hint=_HINT)


def _text_lines(stream: BinaryIO, path: Path, *, strict: bool = True) -> Iterator[tuple[int, str]]:
    """Every line with its number. Raises: UsageError for a line above 16 MiB, or that is no text."""
    number = 0
    while line := stream.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > _MAX_LINE_BYTES:
            raise UsageError(f"{path}, line {number}: longer than 16 MiB", hint=_HINT)
        try:
            yield number, line.decode("utf-8", "strict" if strict else "replace")
        except UnicodeDecodeError:
            raise UsageError(f"{path}, line {number}: not UTF-8 text", hint=_HINT) from None


def _at(path: Path, number: int, read: _Reader, entry: Mapping[str, Any], lines: Lines) -> list[TracedRequest]:
    try:
        return read(entry, lines)
    except BadLine as error:
        raise UsageError(f"{path}, line {number}: {error}", hint=_HINT) from None


def _of_json_lines(stream: BinaryIO, path: Path, lines: Lines) -> Iterator[TracedRequest]:
    for number, line in _text_lines(stream, path):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.lstrip("\ufeff"))
        except (ValueError, RecursionError):
            raise UsageError(f"{path}, line {number}: not JSON: `{line.strip():.60}`", hint=_HINT) from None
        if not isinstance(entry, dict):
            raise UsageError(f"{path}, line {number}: not a request: `{line.strip():.60}`", hint=_HINT)
        yield from _at(path, number, of_object, entry, lines)


def _of_array(stream: BinaryIO, path: Path, lines: Lines) -> Iterator[TracedRequest]:
    """One JSON array of objects, as ShareGPT is published: read an object at a time."""
    decoder, reader, number = json.JSONDecoder(), _decoded(stream, path), 1
    text = next(reader, "")
    at = text.index("[") + 1
    while True:
        begin = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        number += text.count("\n", at, begin)
        if text.startswith("]", begin):
            return
        try:
            entry, at = decoder.raw_decode(text, begin) if begin < len(text) else (None, begin)
        except (ValueError, RecursionError):
            entry, at = None, begin
        if at == begin:
            more = _more(reader, len(text) - begin)
            if not more or len(text) - begin > _MAX_LINE_BYTES:
                raise UsageError(f"{path}, line {number}: not JSON: `{text[begin : begin + 60]}`", hint=_HINT)
            text, at = text[begin:] + more, 0
            continue
        if not isinstance(entry, dict):
            raise UsageError(f"{path}, line {number}: not a request: `{text[begin : begin + 60]}`", hint=_HINT)
        yield from _at(path, number, of_object, entry, lines)
        number += text.count("\n", begin, at)


def _more(reader: Iterator[str], size: int) -> str:
    """What comes next: as much again as an object that is cut has so far, because it is read from its start."""
    parts, found = [], 0
    for part in reader:
        parts.append(part)
        found += len(part)
        if found >= size:
            break
    return "".join(parts)


def _decoded(stream: BinaryIO, path: Path) -> Iterator[str]:
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")()
    while chunk := stream.read(_CHUNK_BYTES):
        try:
            if text := decoder.decode(chunk):
                yield text
        except UnicodeDecodeError:
            raise UsageError(f"{path}: not UTF-8 text", hint=_HINT) from None


def _of_table(stream: BinaryIO, path: Path, lines: Lines, delimiter: str) -> Iterator[TracedRequest]:
    """CSV or TSV with a head. A quoted cell may hold line breaks; lines are counted as the file has them."""
    csv.field_size_limit(min(sys.maxsize, _MAX_LINE_BYTES))
    rows = csv.reader((line for _, line in _text_lines(stream, path)), delimiter=delimiter)
    names: list[str] = []
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if not names:
                names = [cell.strip().lstrip("\ufeff").lower() for cell in row]
                continue
            entry: dict[str, Any] = dict(zip(names, row, strict=False))
            yield from _at(path, rows.line_num, of_columns, entry, lines)
    except csv.Error as error:
        raise UsageError(f"{path}, line {rows.line_num}: {error}", hint=_HINT) from None


def _of_log(stream: BinaryIO, path: Path, lines: Lines) -> Iterator[TracedRequest]:
    """vLLM's log. Other lines are passed over; a file without a request line at its head is no such log."""
    log = EngineLog(lines)
    for number, line in _text_lines(stream, path, strict=False):
        try:
            log.read(line)
        except BadLine as error:
            raise UsageError(f"{path}, line {number}: {error}", hint=_HINT) from None
        if number == _LINES_TO_A_LOG and not log.found:
            raise UsageError(
                f"{path}: no request in the first {number:,} lines",
                hint="vLLM logs requests when it is started with --enable-log-requests",
            )
        if len(log.found) > MAX_REQUESTS:
            break
    if not log.found:
        lines.reason = "; vLLM logs them when it is started with --enable-log-requests"
    yield from log.requests()
