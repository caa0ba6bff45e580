"""A GGUF header as JSON values and back, for memplan's own cache: seven megabytes of vocabulary are fetched once."""

from __future__ import annotations

from typing import Any, cast

from memplan.introspect.ggml_types import GGML_TYPES
from memplan.introspect.gguf import Gguf, GgufTensor, Value
from memplan.introspect.gguf_cursor import Skipped

_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}


def to_json(gguf: Gguf) -> object:
    """Return a header as JSON values."""
    return {
        "name": gguf.name,
        "version": gguf.version,
        "files": gguf.files,
        "metadata": {key: _value(value) for key, value in gguf.metadata.items()},
        "tensors": [[name, each.type.name, each.shape] for name, each in gguf.tensors.items()],
    }


def from_json(value: object) -> Gguf | None:
    """Return the header that `to_json` wrote; None for anything else."""
    try:
        raw = cast("dict[str, Any]", value)
        tensors = {}
        for name, kind_name, axes in raw["tensors"]:
            kind, shape = _TYPES[kind_name], tuple(map(int, axes))
            tensors[str(name)] = GgufTensor(kind, shape, kind.size_bytes(shape))
        return Gguf(
            name=str(raw["name"]),
            version=int(raw["version"]),
            files=tuple(map(str, raw["files"])),
            metadata={str(key): _read(item) for key, item in raw["metadata"].items()},
            tensors=tensors,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _value(value: Value) -> object:
    if isinstance(value, Skipped):
        return {"kind": value.kind, "length": value.length}
    return list(value) if isinstance(value, tuple) else value


def _read(item: Any) -> Value:
    if isinstance(item, dict):
        return Skipped(str(item["kind"]), int(item["length"]))
    return tuple(item) if isinstance(item, list) else cast("Value", item)
