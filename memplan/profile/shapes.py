"""Shapes of what operators make on the meta device, computed once for inputs that look alike.

Much of the meta device is written in Python, and the layers of a model ask it the same questions again and again. An
operator that makes new tensors and changes none gives, for inputs of the same shapes, strides and types, outputs of
the same; they are remembered, and made again from what is remembered.
"""

from __future__ import annotations

from typing import Any

import torch

_META = torch.device("meta")
_Made = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]


class ShapeMemory:
    """Runs operators on the meta device, each kind of call once."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[bool, tuple[_Made | None, ...]] | None] = {}
        self._is_pure: dict[Any, bool] = {}

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what `func` makes of its arguments."""
        is_pure = self._is_pure.get(func)
        if is_pure is None:
            is_pure = self._is_pure[func] = _is_pure(func)
        if not is_pure:
            return func(*args, **kwargs)
        try:
            key = (func, tuple([_look(each) for each in args]), _look_at_named(kwargs) if kwargs else None)
            known = self._made.get(key, _UNSEEN)
        except TypeError:  # something that cannot be a key
            return func(*args, **kwargs)
        if known is _UNSEEN:
            made = func(*args, **kwargs)
            self._made[key] = _describe(made, args)
            return made
        if known is None:
            return func(*args, **kwargs)
        is_alone, outputs = known
        if is_alone:
            shape, stride, dtype = outputs[0]
            return torch.empty_strided(shape, stride, dtype=dtype, device=_META)
        return tuple(
            None if each is None else torch.empty_strided(each[0], each[1], dtype=each[2], device=_META)
            for each in outputs
        )


_UNSEEN: Any = object()


def _look(each: Any) -> Any:
    """What of an argument decides the shapes of what is made of it."""
    kind = type(each)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return each.shape, each.stride(), each.dtype, each.is_meta
    if kind is list or kind is tuple:
        return tuple([_look(one) for one in each])
    if isinstance(each, torch.Tensor):
        raise TypeError
    return kind, each


def _look_at_named(kwargs: dict[str, Any]) -> Any:
    return tuple([(name, _look(each)) for name, each in kwargs.items()])


def _is_pure(func: Any) -> bool:
    """Whether an operator makes new tensors alone."""
    schema = func._schema
    has_tensors = all(str(each.type) in ("Tensor", "Optional[Tensor]") for each in schema.returns)
    return (
        has_tensors and bool(schema.returns) and not schema.is_mutable and not any(r.alias_info for r in schema.returns)
    )


def _describe(made: Any, args: tuple[Any, ...]) -> tuple[bool, tuple[_Made | None, ...]] | None:
    """The outputs of a call; None for those that are not new tensors of the meta device."""
    is_alone = isinstance(made, torch.Tensor)
    outputs = (made,) if is_alone else made
    if not isinstance(outputs, tuple):
        return None
    storages = {each.untyped_storage()._cdata for each in args if isinstance(each, torch.Tensor)}
    described: list[_Made | None] = []
    for each in outputs:
        if each is None:
            described.append(None)
            continue
        if type(each) is not torch.Tensor or not each.is_meta or each.untyped_storage()._cdata in storages:
            return None
        if each.storage_offset() or each.untyped_storage().nbytes() != _dense_bytes(each):
            return None
        storages.add(each.untyped_storage()._cdata)
        described.append((tuple(each.shape), each.stride(), each.dtype))
    return is_alone, tuple(described)


def _dense_bytes(tensor: torch.Tensor) -> int:
    """The bytes of a storage made for a tensor of these strides."""
    if not tensor.numel():
        return 0
    last = sum((axis - 1) * step for axis, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int((last + 1) * tensor.element_size())
