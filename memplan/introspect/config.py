"""Reading a raw Hugging Face config once, at the edge, with types, limits and a memory of what was read.

A key that is missing, null or of the wrong kind becomes an UnsupportedModel that names it; nothing is guessed here. A
default is given by the family that reads the key, and only where transformers' own config class has the same default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeGuard, TypeVar, cast

from memplan.errors import UnsupportedModel

_LARGEST = 1 << 40
_MAX_LAYERS = 4096
_LONGEST_TEXT = 1000
_INCOMPLETE = "give a complete config.json, or try --introspect torch"
_T = TypeVar("_T")
# The class below has methods of these names, which would hide the types in its annotations.
_Str: TypeAlias = str
_Int: TypeAlias = int
_Float: TypeAlias = float
_Bool: TypeAlias = bool


class _Required:
    """The type of the marker for a key without a default."""


REQUIRED = _Required()


class Config:
    """One mapping of a config file, with the dotted path that leads to it."""

    def __init__(self, raw: object, *, path: _Str = "") -> None:
        if not isinstance(raw, Mapping):
            raise UnsupportedModel(f"{path or 'the config'} is not a mapping but {_kind(raw)}")
        self._raw = cast("Mapping[str, object]", raw)
        self.path = path
        self.used: set[_Str] = set()

    def has(self, key: _Str) -> _Bool:
        """Whether `key` is there and not null."""
        return self._raw.get(key) is not None

    def get(self, *keys: _Str) -> object:
        """Return the first of `keys` that is there and not null, unchecked; None when there is none."""
        for key in keys:
            if (value := self._raw.get(key)) is not None:
                self.used.add(key)
                return value
        return None

    def int(self, *keys: _Str, default: _Int | _Required = REQUIRED, minimum: _Int = 1) -> _Int:
        """Return a whole number of at least `minimum`, under the first of `keys` that is there."""
        value = self._read(keys, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(keys, value, "a whole number")
        if isinstance(value, float) and not value.is_integer():  # also infinity and not-a-number, which JSON can hold
            raise self._wrong(keys, value, "a whole number")
        if not minimum <= value < _LARGEST:
            raise self._wrong(keys, value, f"a whole number of at least {minimum} and below 2^40")
        return int(value)

    def optional_int(self, *keys: _Str, minimum: _Int = 0) -> _Int | None:
        """Return a whole number, or None when none of `keys` is there."""
        return self.int(*keys, minimum=minimum) if any(self.has(key) for key in keys) else None

    def nullable_int(self, key: _Str, *, default: _Int | None, minimum: _Int = 0) -> _Int | None:
        """Return a whole number for which null has a meaning of its own: None for null, `default` for an absent key."""
        return self.optional_int(key, minimum=minimum) if key in self._raw else default

    def float(self, *keys: _Str, default: _Float | _Required = REQUIRED) -> _Float:
        value = self._read(keys, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
            raise self._wrong(keys, value, "a number")
        return float(value)

    def bool(self, *keys: _Str, default: _Bool | _Required = REQUIRED) -> _Bool:
        if self.get(*keys) is None and any(key in self._raw for key in keys):
            return False  # transformers takes a null for no
        value = self._read(keys, default)
        if not isinstance(value, bool):
            raise self._wrong(keys, value, "true or false")
        return value

    def str(self, *keys: _Str, default: _Str | _Required = REQUIRED) -> _Str:
        value = self._read(keys, default)
        if not _is_text(value):
            raise self._wrong(keys, value, "a short text")
        return value

    def list(self, *keys: _Str, default: Sequence[object] | _Required = REQUIRED) -> Sequence[object]:
        value = self._read(keys, default)
        if not isinstance(value, (list, tuple)) or len(value) > 100_000:
            raise self._wrong(keys, value, "a list")
        return value

    def ints(self, *keys: _Str, default: Sequence[_Int] | _Required = REQUIRED) -> tuple[_Int, ...]:
        """Return a list of whole numbers."""
        value = self.list(*keys, default=default)
        if not all(isinstance(item, int) and not isinstance(item, bool) and abs(item) < _LARGEST for item in value):
            raise self._wrong(keys, value, "a list of whole numbers")
        return tuple(cast("Sequence[int]", value))

    def strs(self, *keys: _Str, default: Sequence[_Str] | _Required = REQUIRED) -> tuple[_Str, ...]:
        """Return a list of texts."""
        value = self.list(*keys, default=default)
        if not all(_is_text(item) for item in value):
            raise self._wrong(keys, value, "a list of short texts")
        return tuple(cast("Sequence[str]", value))

    def num_layers(self, *keys: _Str, default: _Int | _Required = REQUIRED) -> _Int:
        """Return a layer count: bounded, because one object per layer is made."""
        keys = keys or ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
        number = self.int(*keys, default=default)
        if number > _MAX_LAYERS:
            raise self._wrong(keys, number, f"at most {_MAX_LAYERS}")
        return number

    def sub(self, *keys: _Str) -> Config:
        """Return a nested mapping. Raises: UnsupportedModel when it is not there."""
        for key in keys:
            if self.has(key):
                self.used.add(key)
                return Config(self._raw[key], path=self._dotted(key))
        raise UnsupportedModel(f"the config has no key `{self._dotted(keys[0])}`", hint=_INCOMPLETE)

    def having(self, **values: object) -> Config:
        """The same config with other values for some keys."""
        return Config({**self._raw, **values}, path=self.path)

    def raw(self) -> Mapping[_Str, object]:
        """The mapping as it was read."""
        return self._raw

    def _read(self, keys: tuple[_Str, ...], default: _T | _Required) -> object:
        value = self.get(*keys)
        if value is not None:
            return value
        if isinstance(default, _Required):
            raise UnsupportedModel(
                f"the config has no key `{self._dotted(keys[0])}`",
                hint=_INCOMPLETE,
            )
        return default

    def _wrong(self, keys: tuple[_Str, ...], value: object, wanted: _Str) -> UnsupportedModel:
        key = next((key for key in keys if self.has(key)), keys[0])
        message = f"config key `{self._dotted(key)}` must be {wanted}, not {_show(value)}"
        return UnsupportedModel(message, hint="mend the key, or take the config.json as it was published")

    def _dotted(self, key: _Str) -> _Str:
        return f"{self.path}.{key}" if self.path else key


def _is_text(value: object) -> TypeGuard[str]:
    """Whether a value is a text that may stand in a message: one line, no control characters."""
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.isprintable()


def _kind(value: object) -> str:
    return {type(None): "null", list: "a list", str: "a text", bool: "true or false"}.get(
        type(value), type(value).__name__
    )


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
