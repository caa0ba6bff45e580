"""Reading one entry out of a large YAML file without parsing the rest.

A catalogue file is one top-level mapping in block style: every entry starts at column 0 with its key, its lines are
indented, and nothing outside an entry is needed to read it (no anchors, no tags). So the text between two column-0 keys
is YAML in its own right. Names are found in the bytes, before anything is parsed.

Checked by: tests/catalog/test_slices.py, which compares every slice with a parse of the whole file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import cast

from memplan.catalog.tables import parse_yaml

_KEY = re.compile(rb"^([^\s#:][^\n]*?):(?=\s)", re.MULTILINE)
_NAMES = re.compile(r"^(?:([^\s#:][^\n]*?):(?=\s)|  (aliases|bare): \[([^\]]*)\])", re.MULTILINE)
_FOLD = bytes.maketrans(bytes(range(65, 91)) + b"[]{} _", bytes(range(97, 123)) + b",,,,,-")


class Slices:
    """One catalogue file: its bytes, and a folded copy in which names are looked for.

    Folding makes letters small, drops the characters of `ignored` and turns brackets and blanks into commas, so that a
    name in a list stands between commas whatever its spelling. Line breaks stay, so that line numbers agree.
    """

    def __init__(self, data: bytes, origin: str, *, ignored: bytes = b"") -> None:
        self._data = b"\n" + data
        self._ignored = ignored
        self._folded = self._data.translate(_FOLD, ignored)
        self.origin = origin

    def entry_keys(self) -> list[str]:
        """The keys of all entries, in file order."""
        return [match[1].decode() for match in _KEY.finditer(self._data)]

    def text(self, key: str) -> str | None:
        """Return the YAML text of one entry, or None when the file has no such key."""
        start = self._data.find(b"\n" + key.encode() + b":")
        if start < 0:
            return None
        end = _KEY.search(self._data, start + len(key) + 2)
        return self._data[start + 1 : end.start() if end else len(self._data)].decode()

    def entry(self, key: str) -> dict[str, object] | None:
        """Return one entry, parsed, or None when the file has no such key."""
        text = self.text(key)
        if text is None:
            return None
        parsed = parse_yaml(text, self.origin)
        return cast("dict[str, object]", parsed[key])

    def find_name(self, name: str) -> tuple[str, str] | None:
        """Return the key of the entry that has `name`, and how: as its `key`, its `tail` after the slash, or in its
        `aliases`, `bare` or `quantized` line.
        """
        folded = self.fold(name)
        if not folded:
            return None
        at = self._folded.find(b"\n" + folded + b":")
        if at >= 0:
            return self._key_at(at + 1), "key"
        if listed := self._find_listed(b"," + folded + b",", (b"aliases", b"bare")):
            return listed
        at = self._folded.find(b"/" + folded + b":\n")
        if at >= 0 and b"," not in self._folded[self._folded.rfind(b"\n", 0, at) : at]:
            return self._key_at(at), "tail"
        return self._find_listed(b"," + folded + b",", (b"quantized",)) or self._find_listed(
            b"/" + folded + b",", (b"quantized",)
        )

    def _find_listed(self, folded: bytes, labels: tuple[bytes, ...]) -> tuple[str, str] | None:
        at = self._folded.find(folded)
        while at >= 0:
            line_start = self._folded.rfind(b"\n", 0, at) + 1
            while self._folded.startswith(b",,,,", line_start):  # the list went on to another line
                line_start = self._folded.rfind(b"\n", 0, line_start - 1) + 1
            label = self._folded[line_start : line_start + 16].lstrip(b",").split(b":", 1)[0]
            if label in labels:
                return self._key_at(line_start), label.decode()
            at = self._folded.find(folded, at + 1)
        return None

    def fold(self, name: str) -> bytes:
        """Return a name as it is compared: small letters, blanks and underscores as dashes, less what is ignored."""
        return "-".join(name.split()).encode("ascii", "ignore").translate(_FOLD, self._ignored)

    def names(self) -> Iterator[tuple[str, str, str]]:
        """Every name as (key, `key` or `aliases` or `bare`, name). Slower: for listings, hints and tests."""
        key = ""
        for match in _NAMES.finditer(self._data.decode()):
            if match[1]:
                key = match[1]
                yield key, "key", key
            else:
                yield from ((key, match[2], name.strip()) for name in match[3].split(","))

    def _key_at(self, folded_at: int) -> str:
        """The key of the entry that holds the line at this place of the folded copy."""
        number = self._folded.count(b"\n", 0, folded_at)
        lines = self._data.split(b"\n", number + 1)
        while lines[number][:1] in (b" ", b"#", b""):
            number -= 1
        return lines[number].rstrip(b"\r").removesuffix(b":").decode()


@lru_cache(maxsize=64)
def read_slices(path: Path, *, ignored: bytes = b"") -> Slices:
    """Return the slices of a file; read once per process."""
    return Slices(path.read_bytes(), path.name, ignored=ignored)
