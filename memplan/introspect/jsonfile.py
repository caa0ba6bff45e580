"""JSON files that people and repositories give us: configs and indexes, with limits and errors that say where.

Python's `NaN` and `Infinity` are taken, because real configs hold them (`time_step_limit` of Mamba); the readers of
keys refuse them where a number matters.
"""

from __future__ import annotations

import json
from pathlib import Path

from memplan.errors import CorruptFile
from memplan.introspect.bytesource import open_source, pointer_hint

MAX_JSON_BYTES = 100_000_000
MAX_CONFIG_BYTES = 16_000_000


def read_json_object(path: Path, *, limit_bytes: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    """Return the JSON object in a local file.

    Raises: SourceNotFound when there is no such file; CorruptFile when it is too long or no JSON object.
    """
    return parse_json_object(read_json_text(path, limit_bytes=limit_bytes), str(path), limit_bytes=limit_bytes)


def read_json_text(path: Path, *, limit_bytes: int = MAX_CONFIG_BYTES) -> bytes:
    """Return a file's bytes, one more than the limit at most."""
    with open_source(path) as source:
        return source.read(0, limit_bytes + 1)


def parse_json_object(text: bytes, name: str, *, limit_bytes: int = MAX_CONFIG_BYTES) -> dict[str, object]:
    """Return the JSON object in `text`. Raises: CorruptFile when it is too long or no JSON object."""
    if len(text) > limit_bytes:
        raise CorruptFile(f"too long: `{name}`: more than {limit_bytes} bytes of JSON")
    try:
        raw = json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _damaged(name, error.start, f"byte 0x{text[error.start]:02x}, which is no UTF-8") from None
    except json.JSONDecodeError as error:
        where = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        found = "the file is empty" if not text.strip() else f"{error.msg}, line {error.lineno} column {error.colno}"
        raise _damaged(name, where, found, hint=pointer_hint(text)) from None
    except RecursionError:
        raise _damaged(name, 0, "nested too deeply") from None
    except ValueError as error:  # a number of more than 4,300 digits
        raise _damaged(name, 0, str(error).split(";")[0]) from None
    if not isinstance(raw, dict):
        raise _damaged(name, 0, f"a JSON {type(raw).__name__}, not an object")
    return raw


def _damaged(name: str, offset: int, found: str, *, hint: str | None = None) -> CorruptFile:
    message = f"damaged JSON: `{name}`: at byte {offset}: {found}"
    return CorruptFile(message, hint=hint or "download or write the file again")
