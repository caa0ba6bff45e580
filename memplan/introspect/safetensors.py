"""Reading the header of a `.safetensors` file, and nothing of its data.

The format: 8 bytes of little-endian header length, that much JSON, then the tensors' bytes without a gap. A header that
contradicts itself or its file is refused with the byte where it does.

Source: the safetensors format description; limits as in its reference reader (100 MB of header, no gaps, no overlaps,
no trailing bytes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import NoReturn, TypeGuard

from memplan.introspect.bytesource import ByteSource, damaged, open_source, read_exactly, show
from memplan.introspect.inventory import SAFETENSORS_BITS, Inventory, StoredTensor

MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_LARGEST = 1 << 60
_MAX_RANK = 32
# A header this long is checked for plausible JSON before it is parsed: parsed lists and numbers take up to 20 times
# their text, and a hostile header of 100 MB would take gigabytes.
_SUSPECT_BYTES = 16 << 20
_FIRST_READ_BYTES = 100_000


class _ContradictionError(ValueError):
    """A header that cannot be: what was found, and what belongs there."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found)
        self.found = found
        self.expected = expected


def read_safetensors(path: Path) -> Inventory:
    """Return what the header of a local file lists.

    Raises: SourceNotFound when the file is not there; CorruptFile when it is damaged.
    """
    with open_source(path) as source:
        return parse_safetensors(source)


def parse_safetensors(source: ByteSource) -> Inventory:
    """Return what the header of an open file lists. Raises: CorruptFile when it is damaged."""
    tensors, metadata = parse_header(source, read_header(source))
    return Inventory(tensors=tensors, files=(source.name,), metadata=metadata)


def read_header(source: ByteSource) -> bytes:
    """Return the JSON text of the header, unparsed. Raises: CorruptFile when there is none of a possible length."""
    start = source.read(0, _FIRST_READ_BYTES)
    if len(start) < _LENGTH_BYTES:
        raise damaged(source, 0, f"the file has {len(start)} bytes", expected="8 bytes of header length")
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if start[:4] == b"GGUF":
        raise damaged(source, 0, "a GGUF file", expected="a safetensors file", hint="give it the suffix .gguf")
    if length > MAX_HEADER_BYTES:
        limit = f"at most {MAX_HEADER_BYTES}, the format's limit"
        raise damaged(source, 0, f"a header length of {length} bytes", expected=limit)
    if source.size_bytes is not None and length > source.size_bytes - _LENGTH_BYTES:
        room = f"at most {source.size_bytes - _LENGTH_BYTES}, the rest of the file"
        raise damaged(source, 0, f"a header length of {length} bytes", expected=room)
    if length < 2:
        raise damaged(source, 0, f"a header length of {length} bytes", expected="at least 2, for `{}`")
    have = start[_LENGTH_BYTES : _LENGTH_BYTES + length]
    missing = length - len(have)
    return have + read_exactly(source, _LENGTH_BYTES + len(have), missing, "header") if missing else have


def parse_header(source: ByteSource, header: bytes) -> tuple[dict[str, StoredTensor], Mapping[str, str]]:
    """Return the tensors and the free metadata of a header's JSON text.

    Raises: CorruptFile when the JSON is none, or its entries contradict each other or the file's size.
    """
    raw = _parse_json(source, header)
    metadata = raw.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + len(header)
    data_bytes = None if source.size_bytes is None else source.size_bytes - data_start
    tensors: dict[str, StoredTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in raw.items():
        try:
            begin, end, tensors[name] = _read_entry(entry)
        except _ContradictionError as wrong:
            offset = _LENGTH_BYTES + max(header.find(json.dumps(name, ensure_ascii=False).encode(errors="replace")), 0)
            raise damaged(source, offset, f"tensor `{show(name)}`: {wrong.found}", expected=wrong.expected) from None
        spans.append((begin, end, name))
    _check_spans(source, spans, data_start, data_bytes)
    return tensors, _texts(metadata)


def _parse_json(source: ByteSource, header: bytes) -> dict[str, object]:
    if len(header) > _SUSPECT_BYTES and not _is_plausible(header):
        found = f"{len(header)} bytes of JSON that no list of tensors has"
        raise damaged(source, _LENGTH_BYTES, found, expected="entries with dtype, shape and data_offsets")
    try:
        raw = json.loads(header.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        found = f"byte 0x{header[error.start]:02x}, which is no UTF-8"
        raise damaged(source, _LENGTH_BYTES + error.start, found, expected="UTF-8 text") from None
    except json.JSONDecodeError as error:
        offset = _LENGTH_BYTES + len(error.doc[: error.pos].encode("utf-8"))
        raise damaged(source, offset, f"broken JSON ({error.msg})", expected="valid JSON") from None
    except _ContradictionError as wrong:
        raise damaged(source, _LENGTH_BYTES, wrong.found, expected=wrong.expected) from None
    except RecursionError:
        raise damaged(source, _LENGTH_BYTES, "JSON nested too deeply", expected="one mapping of tensors") from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise damaged(source, _LENGTH_BYTES, f"broken JSON ({show(str(error))})", expected="valid JSON") from None
    if not isinstance(raw, dict):
        raise damaged(source, _LENGTH_BYTES, f"a JSON {type(raw).__name__}", expected="a JSON object")
    return raw


def _is_plausible(header: bytes) -> bool:
    """Whether JSON punctuation is as sparse as in a list of tensors: an entry takes at least 50 bytes."""
    size = len(header)
    return (
        header.count(b"[") * 16 <= size
        and header.count(b"{") * 32 <= size
        and header.count(b",") * 6 <= size
        and header.count(b":") * 8 <= size
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _ContradictionError(f"the name `{show(name)}` twice", "every name once")
    return mapping


def _no_constant(name: str) -> NoReturn:
    raise _ContradictionError(f"the number {name}", "finite numbers")


def _read_entry(entry: object) -> tuple[int, int, StoredTensor]:
    """Return where a tensor's bytes begin and end in the data, and the tensor."""
    if not isinstance(entry, dict):
        raise _ContradictionError(f"{show(repr(entry))} for an entry", "a mapping with dtype, shape and data_offsets")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    bits = SAFETENSORS_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None or not isinstance(dtype, str):
        raise _ContradictionError(f"dtype {show(repr(dtype))}", f"one of {', '.join(SAFETENSORS_BITS)}")
    if not _are_sizes(shape) or len(shape) > _MAX_RANK:
        raise _ContradictionError(f"shape {show(repr(shape))}", f"a list of at most {_MAX_RANK} whole numbers")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise _ContradictionError(f"data_offsets {show(repr(offsets))}", "a begin and an end that is not before it")
    begin, end = offsets
    size_bits = prod(shape) * bits
    if size_bits != (end - begin) * 8:
        found = f"{end - begin} bytes between its data_offsets"
        raise _ContradictionError(found, f"{size_bits / 8:.10g}, by its shape {show(str(shape))} of {dtype}")
    return begin, end, StoredTensor(dtype, tuple(shape), end - begin)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    """Whether a value is a list of whole numbers, none negative or absurd: called twice for every tensor."""
    if type(value) is not list:
        return False
    for item in value:  # noqa: SIM110 - a generator would take a third longer over a large checkpoint
        if type(item) is not int or not 0 <= item < _LARGEST:
            return False
    return True


def _check_spans(
    source: ByteSource, spans: list[tuple[int, int, str]], data_start: int, data_bytes: int | None
) -> None:
    """Raise where the tensors' bytes overlap, leave a hole, run past the file's end or stop before it."""
    spans.sort()
    previous = 0
    for begin, end, name in spans:
        if begin != previous:
            what = "overlaps the one before it" if begin < previous else "leaves a hole before it"
            found = f"tensor `{show(name)}` begins at data byte {begin} and {what}"
            raise damaged(source, data_start + min(begin, previous), found, expected=f"it at data byte {previous}")
        previous = end
    if data_bytes is not None and previous != data_bytes:
        short = previous > data_bytes
        found = f"{data_bytes} bytes of data" + (", so the file is cut off" if short else "")
        offset = data_start + min(previous, data_bytes)
        raise damaged(source, offset, found, expected=f"{previous}, the end of the last tensor")


def _texts(metadata: object) -> Mapping[str, str]:
    if not isinstance(metadata, dict):
        return {}
    return {key: value for key, value in metadata.items() if isinstance(value, str) and len(value) <= 1000}
