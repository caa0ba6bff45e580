"""Frozen records that are cheap to define: the dataclass decorator of this project.

The standard decorator compiles six methods for every frozen, slotted class, whether or not the class is ever used;
over the seventy records of an estimate that takes longer than the estimate. Here the comparing and printing methods
are shared, and an `__init__` is compiled when the first record of its class is made. To a type checker, and to
`dataclasses.fields`, `replace` and `asdict`, the classes are ordinary dataclasses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field, replace
from typing import TYPE_CHECKING, Any

__all__ = ["Same", "dataclass", "field", "replace"]

_MISSING = dataclasses.MISSING

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, kw_only=False):
        """Make a dataclass; one that is frozen and slotted is made the cheap way."""

        def make(plain):
            if not (frozen and slots):
                return dataclasses.dataclass(frozen=frozen, slots=slots, kw_only=kw_only)(plain)
            return _frozen(dataclasses.dataclass(init=False, repr=False, eq=False, slots=True, kw_only=kw_only)(plain))

        return make if cls is None else make(cls)


def _frozen(cls: Any) -> Any:
    """Give a slotted class the shared methods, and an `__init__` that compiles the real one when it is first called."""

    def first_init(self: Any, *args: Any, **named: Any) -> None:
        cls.__init__ = _compiled_init(cls)
        cls.__init__(self, *args, **named)

    methods: dict[str, Callable[..., Any]] = {
        "__init__": first_init,
        "__setattr__": _refuse_to_set,
        "__delattr__": _refuse_to_delete,
        "__eq__": _equal,
        "__hash__": _hash,
        "__repr__": _describe,
        "__getstate__": _state,
        "__setstate__": _restore,
    }
    own = vars(cls)
    for name, method in methods.items():
        if name in ("__init__", "__setattr__", "__delattr__", "__getstate__", "__setstate__") or own.get(name) is None:
            setattr(cls, name, method)
    return cls


def _compiled_init(cls: Any) -> Callable[..., None]:
    """The `__init__` that the standard decorator would have made."""
    fields = dataclasses.fields(cls)
    names: dict[str, Any] = {"_set": object.__setattr__, "_unset": _MISSING}
    positional: list[str] = []
    keyword: list[str] = []
    body: list[str] = []
    for each in fields:
        value = each.name
        parameter = value
        if each.default is not _MISSING:
            names[f"_default_{value}"] = each.default
            parameter = f"{value}=_default_{value}"
        elif each.default_factory is not _MISSING:
            names[f"_factory_{value}"] = each.default_factory
            parameter = f"{value}=_unset"
            value = f"_factory_{value}() if {value} is _unset else {value}"
        (keyword if each.kw_only else positional).append(parameter)
        body.append(f" _set(self, {each.name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    signature = ", ".join(["self", *positional, *(["*", *keyword] if keyword else [])])
    exec(f"def __init__({signature}):\n" + "\n".join(body or [" pass"]), names)
    init: Callable[..., None] = names["__init__"]
    return init


def _values(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record.__dataclass_fields__)


def _compared(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name, each in record.__dataclass_fields__.items() if each.compare)


def _equal(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _describe(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name, each in self.__dataclass_fields__.items() if each.repr)
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refuse_to_set(self: object, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: object, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _state(self: Any) -> tuple[Any, ...]:
    return _values(self)


def _restore(self: Any, state: tuple[Any, ...]) -> None:
    for name, value in zip(self.__dataclass_fields__, state, strict=True):
        object.__setattr__(self, name, value)


class Same:
    """A record as a key by identity: for caches of what was computed from it, where comparing it would take longer.

    The key keeps the record alive, so that its identity stays its own.
    """

    __slots__ = ("record",)

    def __init__(self, record: object) -> None:
        self.record = record

    def __hash__(self) -> int:
        return id(self.record)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.record is self.record
