"""Reading a raw Hugging Face config once, at the edge, with types, limits and a memory of what was read.

A key that is missing, null or of the wrong kind becomes an UnsupportedModel that names it; nothing is guessed here. A
default is given by the family that reads the key, and only where transformers' own config class has the same default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

from memplan.errors import UnsupportedModel

_LARGEST = 1 << 40
_MAX_LAYERS = 4096
_T = TypeVar("_T")


class _Required:
    """The type of the marker for a key without a default."""


REQUIRED = _Required()


class Config:
    """One mapping of a config file, with the dotted path that leads to it."""

    def __init__(self, raw: object, *, path: str = "") -> None:
        if not isinstance(raw, Mapping):
            raise UnsupportedModel(f"{path or 'the config'} is not a mapping but {_kind(raw)}")
        self._raw = cast("Mapping[str, object]", raw)
        self.path = path
        self.used: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self._raw.get(key) is not None

    def get(self, *keys: str) -> object:
        """Return the first of `keys` that is there and not null, unchecked; None when there is none."""
        for key in keys:
            if (value := self._raw.get(key)) is not None:
                self.used.add(key)
                return value
        return None

    def int(self, *keys: str, default: int | _Required = REQUIRED, minimum: int = 1) -> int:
        """Return a whole number of at least `minimum`, under the first of `keys` that is there."""
        value = self._read(keys, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
            raise self._wrong(keys, value, "a whole number")
        if not minimum <= value < _LARGEST:
            raise self._wrong(keys, value, f"a whole number of at least {minimum}")
        return int(value)

    def optional_int(self, *keys: str, minimum: int = 0) -> int | None:
        """Return a whole number, or None when none of `keys` is there."""
        return self.int(*keys, minimum=minimum) if any(self.has(key) for key in keys) else None

    def float(self, *keys: str, default: float | _Required = REQUIRED) -> float:
        value = self._read(keys, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
            raise self._wrong(keys, value, "a number")
        return float(value)

    def bool(self, *keys: str, default: bool | _Required = REQUIRED) -> bool:
        value = self._read(keys, default)
        if not isinstance(value, bool):
            raise self._wrong(keys, value, "true or false")
        return value

    def str(self, *keys: str, default: str | _Required = REQUIRED) -> str:
        value = self._read(keys, default)
        if not isinstance(value, str) or len(value) > 10_000:
            raise self._wrong(keys, value, "a text")
        return value

    def list(self, *keys: str, default: Sequence[object] | _Required = REQUIRED) -> Sequence[object]:
        value = self._read(keys, default)
        if not isinstance(value, (list, tuple)) or len(value) > 100_000:
            raise self._wrong(keys, value, "a list")
        return value

    def ints(self, *keys: str, default: Sequence[int] | _Required = REQUIRED) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        value = self.list(*keys, default=default)
        if not all(isinstance(item, int) and not isinstance(item, bool) and abs(item) < _LARGEST for item in value):
            raise self._wrong(keys, value, "a list of whole numbers")
        return tuple(cast("Sequence[int]", value))

    def strs(self, *keys: str, default: Sequence[str] | _Required = REQUIRED) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self.list(*keys, default=default)
        if not all(isinstance(item, str) for item in value):
            raise self._wrong(keys, value, "a list of texts")
        return tuple(cast("Sequence[str]", value))

    def num_layers(self, *keys: str, default: int | _Required = REQUIRED) -> int:
        """Return a layer count: bounded, because one object per layer is made."""
        number = self.int(*(keys or ("num_hidden_layers",)), default=default)
        if number > _MAX_LAYERS:
            raise self._wrong(keys or ("num_hidden_layers",), number, f"at most {_MAX_LAYERS}")
        return number

    def sub(self, *keys: str) -> Config:
        """Return a nested mapping. Raises: UnsupportedModel when it is not there."""
        for key in keys:
            if self.has(key):
                self.used.add(key)
                return Config(self._raw[key], path=self._dotted(key))
        raise UnsupportedModel(f"the config has no key `{self._dotted(keys[0])}`")

    def raw(self) -> Mapping[str, object]:
        """The mapping as it was read."""
        return self._raw

    def _read(self, keys: tuple[str, ...], default: _T | _Required) -> object:
        value = self.get(*keys)
        if value is not None:
            return value
        if isinstance(default, _Required):
            raise UnsupportedModel(
                f"the config has no key `{self._dotted(keys[0])}`",
                hint="give a complete config.json, or try --introspect torch",
            )
        return default

    def _wrong(self, keys: tuple[str, ...], value: object, wanted: str) -> UnsupportedModel:
        key = next((key for key in keys if self.has(key)), keys[0])
        return UnsupportedModel(f"config key `{self._dotted(key)}` must be {wanted}, not {_show(value)}")

    def _dotted(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def _kind(value: object) -> str:
    return {type(None): "null", list: "a list", str: "a text", bool: "true or false"}.get(type(value), type(value).__name__)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
