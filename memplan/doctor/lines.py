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
    """The lines of a stream that have a cue, each with its number; counts all lines and bytes on the way.

    Cues are plain words, looked for one by one in whole pieces: that is many times as fast as an expression of all of
    them. Lines of the first `head_bytes` are handed on whatever they hold: a short text may be prose.
    """

    def __init__(self, pieces: Iterator[bytes], cues: Iterable[bytes], *, head_bytes: int = 0) -> None:
        self.num_lines = 0
        self.num_bytes = 0
        self._pieces = pieces
        self._cues = tuple(cues)
        self._head_bytes = head_bytes

    def look_for(self, cues: Iterable[bytes]) -> None:
        """Look for other cues from the next piece on."""
        self._cues = tuple(cues)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Yield `(number, text)`; a carriage return ends a line, too: progress bars are drawn with it."""
        rest = b""
        is_passing = False  # over the rest of a line that was too long
        for piece in self._pieces:
            is_head = self.num_bytes < self._head_bytes
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
            if end >= 0:
                yield from self._cued(whole[: end + 1], self._head_bytes if is_head else 0)
            rest = whole[end + 1 :]
            if len(rest) > LINE_BYTES:
                yield from self._last(rest, is_head=is_head)
                rest, is_passing = b"", True
        if rest:
            yield from self._last(rest, is_head=self.num_bytes <= self._head_bytes)
        if rest or is_passing:
            self.num_lines += 1

    def _last(self, rest: bytes, *, is_head: bool) -> Iterator[tuple[int, str]]:
        """A line without an end, or with one too far away: what is kept of it."""
        kept = rest[:LINE_BYTES]
        if is_head or any(cue in kept for cue in self._cues):
            yield self.num_lines + 1, plain(kept)

    def _cued(self, block: bytes, head_bytes: int) -> Iterator[tuple[int, str]]:
        """Whole lines: only those with a cue are taken apart."""
        starts = self._starts(block)
        if head_bytes:
            starts.update(_line_starts(block, head_bytes))
        counted = 0
        for start in sorted(starts):
            self.num_lines += block.count(b"\n", counted, start)
            counted = start
            yield self.num_lines + 1, plain(block[start : min(starts[start], start + LINE_BYTES)])
        self.num_lines += block.count(b"\n", counted)

    def _starts(self, block: bytes) -> dict[int, int]:
        """Where lines with a cue begin, and where they end."""
        starts: dict[int, int] = {}
        for cue in self._cues:
            at = block.find(cue)
            while at >= 0:
                end = block.find(b"\n", at)
                starts[block.rfind(b"\n", 0, at) + 1] = end
                at = block.find(cue, end)
        return starts


def _line_starts(block: bytes, head_bytes: int) -> Iterator[tuple[int, int]]:
    """Every line of the first bytes of a block."""
    start = 0
    while start < min(len(block), head_bytes):
        end = block.find(b"\n", start)
        yield start, end
        start = end + 1


def plain(line: bytes) -> str:
    """One line as text without escape codes and control characters."""
    text = line.decode("utf-8", "replace")
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    return _CONTROL.sub(" ", text)
