"""Small checkpoint files made byte by byte, so that a test can put any lie into them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def safetensors_bytes(entries: object, data: bytes = b"", *, header_length: int | None = None) -> bytes:
    """A safetensors file with `entries` as its header (bytes are taken as they are) and any header length."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(header) if header_length is None else header_length) + header + data


def entry(dtype: str, shape: Iterable[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], int]]) -> None:
    """Write tensors given as name -> (dtype, shape, bytes), with zeros for data."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, size_bytes) in tensors.items():
        entries[name] = entry(dtype, shape, end, end + size_bytes)
        end += size_bytes
    path.write_bytes(safetensors_bytes(entries, bytes(end)))


class GgufBytes:
    """A GGUF file under construction, in any version and byte order, with any lie in it."""

    def __init__(self, *, version: int = 3, big_endian: bool = False) -> None:
        self.version = version
        self.order = ">" if big_endian else "<"
        self.keys: list[bytes] = []
        self.infos: list[bytes] = []
        self.data_bytes = 0

    def count(self, number: int) -> bytes:
        return struct.pack(self.order + ("I" if self.version == 1 else "Q"), number)

    def text(self, text: str | bytes) -> bytes:
        raw = text.encode() if isinstance(text, str) else text
        return self.count(len(raw)) + raw

    def number(self, code: str, number: float) -> bytes:
        return struct.pack(self.order + code, number)

    def key(self, name: str, value: object) -> GgufBytes:
        self.keys.append(self.text(name) + self.value(value))
        return self

    def value(self, value: object) -> bytes:
        if isinstance(value, bool):
            return self.number("I", BOOL) + self.number("?", value)
        if isinstance(value, int):
            return self.number("I", U32) + self.number("I", value)
        if isinstance(value, float):
            return self.number("I", F32) + self.number("f", value)
        if isinstance(value, str):
            return self.number("I", STRING) + self.text(value)
        if isinstance(value, bytes):
            return value
        return self.number("I", ARRAY) + self.items(list(value))  # type: ignore[call-overload]

    def items(self, values: list[object]) -> bytes:
        first = values[0] if values else 0
        if isinstance(first, str):
            return self.number("I", STRING) + self.count(len(values)) + b"".join(self.text(str(v)) for v in values)
        if isinstance(first, list):
            return self.number("I", ARRAY) + self.count(len(values)) + b"".join(self.items(list(v)) for v in values)
        kind, code = (BOOL, "?") if isinstance(first, bool) else (I32, "i")
        return self.number("I", kind) + self.count(len(values)) + b"".join(self.number(code, v) for v in values)

    def tensor(
        self, name: str, shape: tuple[int, ...], type_id: int, size_bytes: int, *, offset: int | None = None
    ) -> GgufBytes:
        """Add a tensor; `shape` is in PyTorch's order, the file lists it the other way round."""
        at = self.data_bytes if offset is None else offset
        axes = b"".join(self.count(axis) for axis in reversed(shape))
        self.infos.append(
            self.text(name)
            + self.number("I", len(shape))
            + axes
            + self.number("I", type_id)
            + struct.pack(self.order + "Q", at)
        )
        self.data_bytes = -(-(at + size_bytes) // 32) * 32
        return self

    def build(self, *, num_tensors: int | None = None, num_keys: int | None = None) -> bytes:
        counts = self.count(len(self.infos) if num_tensors is None else num_tensors)
        counts += self.count(len(self.keys) if num_keys is None else num_keys)
        head = b"GGUF" + self.number("I", self.version) + counts + b"".join(self.keys) + b"".join(self.infos)
        return head + bytes(-len(head) % 32) + bytes(self.data_bytes)
