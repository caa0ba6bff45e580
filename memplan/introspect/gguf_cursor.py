"""Stepping through the bytes of a GGUF header: numbers, texts, arrays, in either byte order, without trust.

Bytes come from the source in windows, so a file over HTTP costs few requests and a long vocabulary little memory.
"""

from __future__ import annotations

import struct
from typing import NoReturn

from memplan.introspect.bytesource import ByteSource, damaged
from memplan.records import dataclass

# The most that a header may take, and the longest things in it that are kept rather than stepped over.
MAX_HEADER_BYTES = 1 << 28
_MAX_KEPT_TEXT_BYTES = 65_536
_MAX_KEPT_ITEMS = 65_536
_MAX_NESTING = 4
_WINDOW_BYTES = 1 << 20
_LARGEST_WINDOW_BYTES = 1 << 24

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value that was stepped over: an array of `length` items, or a text of `length` bytes."""

    kind: str
    length: int


class Cursor:
    """A position in a header. `order` is struct's byte order mark; `wide` false reads version 1's 32-bit counts."""

    def __init__(self, source: ByteSource, offset: int, order: str, *, wide: bool) -> None:
        self._source = source
        self._window = b""
        self._start = offset
        self._at = 0
        self._window_bytes = _WINDOW_BYTES
        self._order = order
        self._scalars = {kind: struct.Struct(order + code) for kind, code in _SCALARS.items()}
        self._count = self._scalars[10 if wide else 4]

    @property
    def offset(self) -> int:
        """Where the next byte is, in the file."""
        return self._start + self._at

    def u32(self) -> int:
        return int(self._number(self._scalars[4]))

    def u64(self) -> int:
        return int(self._number(self._scalars[10]))

    def count(self) -> int:
        """A count or a length: 64 bits wide, 32 in version 1."""
        return int(self._number(self._count))

    def text(self, limit_bytes: int, what: str) -> str:
        """Return a text of at most `limit_bytes`. Raises: CorruptFile when it is longer, cut off or no UTF-8."""
        length = self.count()
        if length > limit_bytes:
            self._wrong(f"{length} bytes of {what}", f"at most {limit_bytes}")
        self._need(length, what)
        start, self._at = self._at, self._at + length
        try:
            return self._window[start : self._at].decode("utf-8")
        except UnicodeDecodeError:
            self._at = start
            self._wrong(f"{what} that is no UTF-8", "UTF-8 text")

    def value(self, *, skip_arrays: bool) -> int | float | bool | str | tuple[int | float, ...] | Skipped:
        """Return the value at the cursor, preceded by its type; of long things only the length."""
        kind = self.u32()
        if kind in self._scalars:
            return self._number(self._scalars[kind])
        if kind == _STRING:
            return self._kept_text()
        if kind != _ARRAY:
            self._wrong(f"value type {kind}", "0 to 12")
        return self._array(skip_arrays, 0)

    def _kept_text(self) -> str | Skipped:
        length = self.count()
        if length <= _MAX_KEPT_TEXT_BYTES:
            self._need(length, "a text")
            start, self._at = self._at, self._at + length
            return self._window[start : self._at].decode("utf-8", "replace")
        self._skip(length, "a text")
        return Skipped("text", length)

    def _array(self, skip: bool, nesting: int) -> tuple[int | float, ...] | Skipped:
        kind, length = self.u32(), self.count()
        scalar = self._scalars.get(kind)
        if scalar is not None:
            if skip or length > _MAX_KEPT_ITEMS:
                self._skip(length * scalar.size, "an array")
                return Skipped("numbers", length)
            self._need(length * scalar.size, "an array")
            start, self._at = self._at, self._at + length * scalar.size
            code = f"{self._order}{length}{scalar.format[-1]}"
            return struct.unpack(code, self._window[start : self._at])
        if kind == _STRING:
            self._skip_texts(length)
            return Skipped("texts", length)
        if kind != _ARRAY or nesting >= _MAX_NESTING:
            self._wrong(f"an array of type {kind}, {nesting} deep", f"types 0 to 12, at most {_MAX_NESTING} deep")
        if length > _MAX_KEPT_ITEMS:
            self._wrong(f"an array of {length} arrays", f"at most {_MAX_KEPT_ITEMS}")
        for _ in range(length):
            self._array(True, nesting + 1)
        return Skipped("arrays", length)

    def _skip_texts(self, length: int) -> None:
        """Step over `length` texts: the hot loop of a header, one iteration per vocabulary entry."""
        self._check_room(length, self._count.size)
        unpack, size = self._count.unpack_from, self._count.size
        while length:
            self._need(size, "an array of texts")
            window, at, last = self._window, self._at, len(self._window) - size
            while length and at <= last:
                at += size + unpack(window, at)[0]
                length -= 1
            self._at = at
        self._check_end(0, "an array of texts")

    def _number(self, scalar: struct.Struct) -> int | float | bool:
        if self._at + scalar.size > len(self._window):
            self._need(scalar.size, "a number")
        (number,) = scalar.unpack_from(self._window, self._at)
        self._at += scalar.size
        return number  # type: ignore[no-any-return]

    def _skip(self, length: int, what: str) -> None:
        self._check_end(length, what)
        self._at += length

    def _check_room(self, count: int, least_bytes: int) -> None:
        """Raise when `count` items of at least `least_bytes` cannot be in what is left."""
        room = MAX_HEADER_BYTES if self._source.size_bytes is None else self._source.size_bytes
        if count * least_bytes > min(room, MAX_HEADER_BYTES) - min(self.offset, room):
            self._wrong(f"an array of {count} items", "as many as the file has room for")

    def _need(self, length: int, what: str) -> None:
        """Make sure that `length` bytes at the cursor are in the window."""
        if self._at + length <= len(self._window):
            return
        self._check_end(length, what)
        self._start, self._at = self.offset, 0
        self._window = self._source.read(self._start, max(length, self._window_bytes))
        self._window_bytes = min(2 * self._window_bytes, _LARGEST_WINDOW_BYTES)
        if length > len(self._window):
            end = self._start + len(self._window)
            self._wrong(f"the file ends after {end} bytes", f"{length} bytes of {what}")

    def _check_end(self, length: int, what: str) -> None:
        """Raise when `length` bytes at the cursor run past the file, or past what a header may take."""
        end, size = self.offset + length, self._source.size_bytes
        if size is not None and end > size:
            self._wrong(f"the file ends after {size} bytes", f"{length} bytes of {what}")
        if end > MAX_HEADER_BYTES:
            self._wrong("a header that goes on", f"an end by {MAX_HEADER_BYTES} bytes")

    def _wrong(self, found: str, expected: str) -> NoReturn:
        raise damaged(self._source, self.offset, found, expected=expected)
