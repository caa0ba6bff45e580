"""Reading the metadata and the tensor list of a GGUF file, and nothing of its tensors' data.

The format, versions 1 to 3, in either byte order: magic, version, counts, key-value pairs, tensor infos, padding, data.
Long arrays (a tokenizer's vocabulary) and long texts are stepped over and only counted, so a file of any size costs the
time of its tensor list. A file that contradicts itself is refused with the byte where it does.

Source: the GGUF specification in llama.cpp's documentation. llama.cpp's own limits are wider.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Union

from memplan.errors import CorruptFile, SourceNotFound, UnsupportedModel
from memplan.introspect.bytesource import ByteSource, damaged, open_source, show
from memplan.introspect.ggml_types import GGML_TYPES, GgmlType
from memplan.introspect.gguf_cursor import Cursor, Skipped
from memplan.records import dataclass

Value = Union[int, float, bool, str, tuple[Union[int, float, bool], ...], Skipped]  # noqa: UP007

_MAX_KEYS = 65_536
_MAX_TENSORS = 1 << 18
_MAX_NAME_BYTES = 65_535
_MAX_RANK = 8
_MAX_SPLITS = 4096
_MAX_ALIGNMENT = 1 << 20
_LARGEST = 1 << 60
_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its ggml type, its shape in PyTorch's order (ggml lists axes the other way round) and its bytes."""

    type: GgmlType
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gguf:
    """The header of a GGUF model; of a split one, the union over its files and the metadata of the first."""

    name: str
    version: int
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]
    files: tuple[str, ...]

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors.values())


def read_gguf(path: Path) -> Gguf:
    """Return the header of a local file, or of all files of a split model of which `path` names one.

    Raises: SourceNotFound when a file is not there; CorruptFile when one is damaged; UnsupportedModel when it is newer.
    """
    return read_splits(path.name, lambda name: _read_one(path.parent / name))


def read_splits(name: str, read_one: Callable[[str], Gguf]) -> Gguf:
    """Return the header of file `name`; when it is one of a split model, that of all its files.

    Raises: CorruptFile when the files do not belong together; what `read_one` raises, for a missing one with its name.
    """
    first = read_one(name)
    count = _whole(first, "split.count", 0)
    if count <= 1:
        return first
    match = _SPLIT_NAME.fullmatch(name)
    if not match or int(match[3]) != count or count > _MAX_SPLITS:
        raise CorruptFile(
            f"a part of a split model under another name: `{name}`: it says that it is one of {count} files",
            hint=f"rename its files to NAME-00001-of-{count:05}.gguf and so on",
        )
    parts = []
    for number in range(1, count + 1):
        part_name = f"{match[1]}-{number:05}-of-{count:05}.gguf"
        part = first if part_name == name else _read_part(part_name, read_one, count)
        if _whole(part, "split.no", -1) != number - 1 or _whole(part, "split.count", 0) != count:
            raise CorruptFile(
                f"damaged file: `{part_name}`: its split.no and split.count say another part than {number}"
            )
        parts.append(part)
    return _joined(parts)


def parse_gguf(source: ByteSource) -> Gguf:
    """Return the header of an open file. Raises: CorruptFile, UnsupportedModel."""
    cursor, version = _open(source)
    num_tensors = cursor.count()
    num_keys = cursor.count()
    if num_tensors > _MAX_TENSORS or num_keys > _MAX_KEYS:
        found = f"{num_tensors} tensors and {num_keys} keys"
        raise damaged(source, 8, found, expected=f"at most {_MAX_TENSORS} and {_MAX_KEYS}")
    metadata: dict[str, Value] = {}
    for _ in range(num_keys):
        start = cursor.offset
        key = cursor.text(_MAX_NAME_BYTES, "a key")
        if key in metadata:
            raise damaged(source, start, f"the key `{show(key)}` twice", expected="every key once")
        metadata[key] = cursor.value(skip_arrays=key.startswith("tokenizer."))
    alignment = _alignment(source, metadata)
    infos = _tensor_infos(source, cursor, num_tensors, alignment)
    data_start = -(-cursor.offset // alignment) * alignment
    _check_data(source, infos, data_start)
    tensors = {name: tensor for name, (tensor, _) in infos.items()}
    return Gguf(name=source.name, version=version, metadata=metadata, tensors=tensors, files=(source.name,))


def _read_one(path: Path) -> Gguf:
    with open_source(path) as source:
        return parse_gguf(source)


def _read_part(name: str, read_one: Callable[[str], Gguf], count: int) -> Gguf:
    try:
        return read_one(name)
    except SourceNotFound as error:
        hint = "finish the download: all files of a split model are needed"
        raise SourceNotFound(f"missing file of a split model of {count}: {error.message}", hint=hint) from None


def _joined(parts: list[Gguf]) -> Gguf:
    tensors: dict[str, GgufTensor] = {}
    for part in parts:
        twice = next((name for name in part.tensors if name in tensors), None)
        if twice is not None:
            raise CorruptFile(f"damaged split model: `{part.name}`: tensor `{show(twice)}` is in an earlier file too")
        tensors.update(part.tensors)
    wanted = _whole(parts[0], "split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise CorruptFile(f"damaged split model: `{parts[0].name}`: {len(tensors)} tensors; expected {wanted}")
    return Gguf(
        name=parts[0].name,
        version=parts[0].version,
        metadata=parts[0].metadata,
        tensors=tensors,
        files=tuple(file for part in parts for file in part.files),
    )


def _whole(gguf: Gguf, key: str, default: int) -> int:
    value = gguf.metadata.get(key, default)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _open(source: ByteSource) -> tuple[Cursor, int]:
    start = source.read(0, 8)
    if start[:4] != b"GGUF":
        found = f"the bytes {start[:4].hex(' ') or 'of nothing'}"
        hint = "an older GGML file: convert it again" if start[:4] in (b"lmgg", b"fmgg", b"tjgg") else None
        raise damaged(source, 0, found, expected="47 47 55 46, the mark of a GGUF file", hint=hint)
    if len(start) < 8:
        raise damaged(source, 4, f"the file ends after {len(start)} bytes", expected="4 bytes of version")
    little = int.from_bytes(start[4:8], "little")
    order = "<" if little & 0xFFFF else ">"
    version = little if order == "<" else int.from_bytes(start[4:8], "big")
    if not 1 <= version <= 3:
        if not 3 < version < 100:
            raise damaged(source, 4, f"version {version}", expected="1, 2 or 3")
        raise UnsupportedModel(f"unknown GGUF version: {version} in `{source.name}`", hint="update memplan")
    return Cursor(source, 8, order, wide=version > 1), version


def _alignment(source: ByteSource, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & alignment - 1:
        raise damaged(source, 8, f"general.alignment {show(str(alignment))}", expected="a power of two up to 1 MiB")
    return alignment


def _tensor_infos(
    source: ByteSource, cursor: Cursor, num_tensors: int, alignment: int
) -> dict[str, tuple[GgufTensor, int]]:
    """Return each tensor and where its bytes begin in the data."""
    infos: dict[str, tuple[GgufTensor, int]] = {}
    for _ in range(num_tensors):
        start = cursor.offset
        name = cursor.text(_MAX_NAME_BYTES, "a tensor's name")
        rank = cursor.u32()
        if name in infos:
            raise damaged(source, start, f"the tensor `{show(name)}` twice", expected="every tensor once")
        if rank > _MAX_RANK:
            raise damaged(source, start, f"{rank} axes of `{show(name)}`", expected=f"at most {_MAX_RANK}")
        shape = tuple(cursor.count() for _ in range(rank))[::-1]
        tensor = _tensor(source, start, name, shape, cursor.u32())
        offset = cursor.u64()
        if offset % alignment or offset > _LARGEST:
            found = f"data offset {offset} of `{show(name)}`"
            raise damaged(source, start, found, expected=f"a multiple of the alignment, {alignment}")
        infos[name] = tensor, offset
    return infos


def _tensor(source: ByteSource, start: int, name: str, shape: tuple[int, ...], type_id: int) -> GgufTensor:
    if prod(shape) > _LARGEST or any(axis > _LARGEST for axis in shape):
        raise damaged(source, start, f"shape {show(str(shape))} of `{show(name)}`", expected="less than 2^60 elements")
    kind = GGML_TYPES.get(type_id)
    if kind is None:
        if type_id >= 1024:
            raise damaged(source, start, f"tensor type {type_id} of `{show(name)}`", expected="a ggml type")
        raise UnsupportedModel(
            f"unknown GGUF tensor type: {type_id}, of `{show(name)}` in `{source.name}`",
            hint="the file is newer than this version of memplan: update it",
        )
    if shape and shape[-1] % kind.block:
        found = f"rows of {shape[-1]} elements in `{show(name)}`"
        raise damaged(source, start, found, expected=f"a multiple of {kind.block}, the block of {kind.name}")
    return GgufTensor(kind, shape, kind.size_bytes(shape))


def _check_data(source: ByteSource, infos: Mapping[str, tuple[GgufTensor, int]], data_start: int) -> None:
    """Raise where tensors' bytes overlap or run past the file's end."""
    spans = sorted((offset, offset + tensor.size_bytes, name) for name, (tensor, offset) in infos.items())
    previous_end, previous_name = 0, ""
    for begin, end, name in spans:
        if begin < previous_end:
            found = f"tensor `{show(name)}` begins inside `{show(previous_name)}`"
            raise damaged(source, data_start + begin, found, expected=f"it at data byte {previous_end} or later")
        previous_end, previous_name = end, name
    if source.size_bytes is not None and spans and data_start + previous_end > source.size_bytes:
        found = f"the file has {source.size_bytes} bytes, so it is cut off"
        expected = f"{data_start + previous_end} bytes, to the end of `{show(previous_name)}`"
        raise damaged(source, source.size_bytes, found, expected=expected, hint="finish the download")
