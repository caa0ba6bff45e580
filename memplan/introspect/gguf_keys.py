"""Reading GGUF metadata once, with types and limits: one number for all layers, or a list with one per layer."""

from __future__ import annotations

from collections.abc import Mapping

from memplan.errors import UnsupportedModel
from memplan.introspect.bytesource import show
from memplan.introspect.gguf import Value
from memplan.introspect.gguf_cursor import Skipped

_LARGEST = 1 << 40
_MAX_LAYERS = 4096
_HINT = "convert the model again with a current llama.cpp"


class Keys:
    """The metadata of one model; keys without a dot at the start are under the architecture's own name."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self._metadata = metadata
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise UnsupportedModel("the GGUF metadata has no key `general.architecture`", hint=_HINT)
        self.architecture = architecture

    def text(self, key: str, default: str = "") -> str:
        value = self._metadata.get(key, default)
        return value if isinstance(value, str) else default

    def items(self, key: str) -> int | None:
        """The length of an array under its full key; None when there is none."""
        value = self._metadata.get(key)
        if isinstance(value, Skipped) and value.kind != "text":
            return value.length
        return len(value) if isinstance(value, tuple) else None

    def has(self, key: str) -> bool:
        return self._full(key) in self._metadata

    def is_list(self, key: str) -> bool:
        return isinstance(self._metadata.get(self._full(key)), tuple)

    def flag(self, key: str, default: bool) -> bool:
        value = self._metadata.get(self._full(key), default)
        return value if isinstance(value, bool) else default

    def whole(self, key: str, default: int | None = None, *, minimum: int = 0) -> int:
        """Return a whole number, the largest where the file lists one per layer.

        Raises: UnsupportedModel when it is missing without a default, or no number of at least `minimum`.
        """
        value = self._metadata.get(self._full(key))
        if value is None:
            if default is None:
                raise UnsupportedModel(f"the GGUF metadata has no key `{show(self._full(key))}`", hint=_HINT)
            return default
        if isinstance(value, tuple) and value:
            return max(self._checked(key, item, minimum) for item in value)
        return self._checked(key, value, minimum)

    def per_layer(self, key: str, num_layers: int, default: int | None = None) -> tuple[int, ...]:
        """Return one whole number per layer: the file's list, or its one number for all.

        Raises: UnsupportedModel when it is missing without a default, or the list is shorter than the layers.
        """
        value = self._metadata.get(self._full(key))
        if not isinstance(value, tuple):
            return (self.whole(key, default),) * num_layers
        if len(value) < num_layers:
            raise UnsupportedModel(f"GGUF key `{show(self._full(key))}` lists {len(value)} layers of {num_layers}")
        return tuple(self._checked(key, item, 0) for item in value[:num_layers])

    def num_layers(self) -> int:
        number = self.whole("block_count", minimum=1)
        if number > _MAX_LAYERS:
            raise UnsupportedModel(
                f"GGUF key `{show(self._full('block_count'))}` must be at most {_MAX_LAYERS}: {number}"
            )
        return number

    def _full(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _checked(self, key: str, value: object, minimum: int) -> int:
        if isinstance(value, bool):
            value = int(value)
        if not isinstance(value, (int, float)) or not minimum <= value < _LARGEST or value != int(value):
            shown = show(repr(value))
            raise UnsupportedModel(
                f"GGUF key `{show(self._full(key))}` must be a whole number from {minimum}, not {shown}"
            )
        return int(value)
