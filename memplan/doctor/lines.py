"""A file of any size as lines, in constant memory.

Bytes are read in pieces; a line is cut at a limit and the rest of it passed over; escape codes of terminals and other
control characters are taken out. Only lines with a cue are handed on, which is looked for in whole pieces at once.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator

_PIECE_BYTES = 1 << 20
LINE_BYTES = 1 << 14
_ANSI = re.compile(r"\x1b(?:\[[0-?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b]{0,256}(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def read_pieces(stream: Iterable[bytes] | object) -> Iterator[bytes]:
    """Read a binary stream, or anything that gives bytes, in pieces."""
    read = getattr(stream, "read", None)
    if read is None:
        assert isinstance(stream, Iterable)
        yield from stream
        return
    while piece := read(_PIECE_BYTES):
        yield piece


def as_utf8(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same as UTF-8: what PowerShell writes is UTF-16, told by its first two bytes."""
    first = next(pieces, b"")
    encoding = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(first[:2])
    if encoding is None:
        if first:
            yield first
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    yield decoder.decode(first[2:]).encode("utf-8", "replace")
    for piece in pieces:
        yield decoder.decode(piece).encode("utf-8", "replace")


class CuedLines:
    """The lines of a stream that have a cue, each with its number; counts all lines and bytes on the way."""

    def __init__(self, pieces: Iterator[bytes], cue: re.Pattern[bytes]) -> None:
        self.num_lines = 0
        self.num_bytes = 0
        self._pieces = pieces
        self._cue = cue

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Yield `(number, text)`; a carriage return ends a line, too: progress bars are drawn with it."""
        rest = b""
        is_passing = False  # over the rest of a line that was too long
        for piece in self._pieces:
            self.num_bytes += len(piece)
            whole = (rest + piece) if rest else piece
            whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in whole else whole
            if is_passing:
                end = whole.find(b"\n")
                if end < 0:
                    rest = b""
                    continue
                whole, is_passing = whole[end + 1 :], False
                self.num_lines += 1
            end = whole.rfind(b"\n")
            yield from self._cued(whole[: end + 1])
            rest = whole[end + 1 :]
            if len(rest) > LINE_BYTES:
                yield from self._last(rest)
                rest, is_passing = b"", True
        if rest and not is_passing:
            yield from self._last(rest)
            self.num_lines += 1
        elif is_passing:
            self.num_lines += 1

    def _last(self, rest: bytes) -> Iterator[tuple[int, str]]:
        """A line without an end, or with one too far away: what is kept of it."""
        kept = rest[:LINE_BYTES]
        if self._cue.search(kept):
            yield self.num_lines + 1, plain(kept)

    def _cued(self, block: bytes) -> Iterator[tuple[int, str]]:
        """Whole lines: only those around a cue are taken apart."""
        position = counted = 0
        while (found := self._cue.search(block, position)) is not None:
            start = block.rfind(b"\n", 0, found.start()) + 1
            end = block.find(b"\n", found.end())
            end = len(block) if end < 0 else end
            self.num_lines += block.count(b"\n", counted, start)
            counted = start
            yield self.num_lines + 1, plain(block[start : min(end, start + LINE_BYTES)])
            position = end + 1
            if position >= len(block):
                break
        self.num_lines += block.count(b"\n", counted)


def plain(line: bytes) -> str:
    """One line as text without escape codes and control characters."""
    text = line.decode("utf-8", "replace")
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return _CONTROL.sub(" ", text)
