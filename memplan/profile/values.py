"""What small whole-number tensors of the meta device would hold, so that a model's code can ask them.

Models look at masks ("is nothing padded?"), lengths and positions, and choose their way by them; on the meta device
there is nothing to look at. Whole numbers and truths that follow from other ones are therefore computed beside the
model on the CPU, as long as they are few. What follows from weights is not known: a question about it is answered as
a model in ordinary use would be (nothing has ended, every token of a batch is spread evenly).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from memplan.profile.recorder import Answer

_MOST_ELEMENTS = 1 << 20
_NAME = "_memplan_value"
_OPS = torch.ops.aten
_WHOLE = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
# Operators whose result has no value: memory as it is found, and chance.
_WITHOUT = ("empty", "rand", "bernoulli", "multinomial", "exponential", "normal")


class _Unknown(Exception):
    """A value that does not follow from known ones."""


def value_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The CPU tensor with what `tensor` would hold; None where that is not known."""
    if tensor.device.type == "cpu":
        return tensor
    known: torch.Tensor | None = getattr(tensor, _NAME, None)
    return known


def with_value(value: torch.Tensor, device: str) -> torch.Tensor:
    """A tensor of a device that holds `value`; the meta device knows it too."""
    return _on_meta(value) if device == "meta" else value.to(device)


def note_value(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
    """Compute beside an operator of the meta device what it makes, if that is whole numbers and its inputs are known.

    An operator that writes into a tensor whose value is known takes that knowledge away when its other inputs are not.
    """
    tensor = made[0] if isinstance(made, (tuple, list)) and made else made
    if not isinstance(tensor, torch.Tensor):
        return
    if tensor.dtype not in _WHOLE or tensor.numel() > _MOST_ELEMENTS or not tensor.is_meta:
        return
    name = func._schema.name.removeprefix("aten::")
    try:
        if name.startswith(_WITHOUT):
            raise _Unknown
        known_args, known_kwargs = tree_map(_known, (args, kwargs))
        value = func(*known_args, **known_kwargs)
    except (_Unknown, RuntimeError, NotImplementedError, TypeError, IndexError):
        value = None
    for each, known in zip(_tensors(made), _tensors(value) or [None] * 8, strict=False):
        setattr(each, _NAME, known)


def _known(each: Any) -> Any:
    if isinstance(each, torch.Tensor):
        value = value_of(each)
        if value is None:
            raise _Unknown
        return value
    return torch.device("cpu") if isinstance(each, torch.device) else each


def _tensors(made: Any) -> list[torch.Tensor]:
    if isinstance(made, torch.Tensor):
        return [made]
    return [each for each in made if isinstance(each, torch.Tensor)] if isinstance(made, (tuple, list)) else []


def meta_answers() -> dict[Any, Answer]:
    """Stand-ins for the operators that need values."""
    return {
        _OPS._local_scalar_dense.default: _item,
        _OPS.nonzero.default: _nonzero,
        _OPS._to_copy.default: _copy,
        _OPS.index.Tensor: _index,
        _OPS.masked_select.default: _masked_select,
        _OPS.equal.default: _equal,
        _OPS._grouped_mm.default: _grouped_mm,
        _OPS.repeat_interleave.Tensor: _repeat_interleave,
        _OPS._unique2.default: _valued(_OPS._unique2.default),
        _OPS.unique_consecutive.default: _valued(_OPS.unique_consecutive.default),
        _OPS.bincount.default: _valued(_OPS.bincount.default),
    }


def _on_meta(value: torch.Tensor) -> torch.Tensor:
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    setattr(made, _NAME, value)
    return made


def _item(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor = args[0]
    value = value_of(tensor)
    if value is not None:
        return _OPS._local_scalar_dense.default(value)
    if tensor.dtype == torch.bool:
        return False
    return 0.0 if tensor.is_floating_point() else 1


def _equal(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    left, right = (value_of(each) for each in args[:2])
    return _OPS.equal.default(left, right) if left is not None and right is not None else False


def _copy(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    device = kwargs.get("device")
    if args[0].is_meta and device is not None and torch.device(device).type == "cpu":
        value = value_of(args[0])
        if value is None:
            value = torch.zeros(args[0].shape, dtype=args[0].dtype)
        return _OPS._to_copy.default(value, **kwargs)
    return _OPS._to_copy.default(*args, **kwargs)


def _nonzero(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor = args[0]
    if not tensor.is_meta:
        return _OPS.nonzero.default(tensor)
    value = value_of(tensor)
    if value is not None:
        return _on_meta(_OPS.nonzero.default(value))
    return torch.empty((tensor.numel(), tensor.dim()), dtype=torch.long, device="meta")


def _masked_select(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, mask = args
    if not tensor.is_meta:
        return _OPS.masked_select.default(tensor, mask)
    value = value_of(mask)
    shape = torch.broadcast_shapes(tensor.shape, mask.shape)
    count = shape.numel() if value is None else int(value.expand(shape).sum())
    return torch.empty((count,), dtype=tensor.dtype, device="meta")


def _index(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Indexing with a mask is indexing with the places where it is true."""
    tensor, indices = args
    if not tensor.is_meta:
        return _OPS.index.Tensor(tensor, indices)
    spread: list[Any] = []
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            spread.append(index)
            continue
        places = _nonzero((index if index.is_meta else _on_meta(index),), {})
        spread.extend(places[:, axis] for axis in range(index.dim()))
    return _OPS.index.Tensor(tensor, spread)


def _repeat_interleave(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    repeats = args[0]
    if not repeats.is_meta:
        return _OPS.repeat_interleave.Tensor(*args, **kwargs)
    value = value_of(repeats)
    if value is not None:
        return _on_meta(_OPS.repeat_interleave.Tensor(value, **kwargs))
    return torch.empty((kwargs.get("output_size") or repeats.numel(),), dtype=repeats.dtype, device="meta")


def _grouped_mm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Products of groups of rows: torch's own shapes are given for 16 bit floats alone. Rows begin at 16 bytes."""
    left, right = args[:2]
    if not left.is_meta:
        return _OPS._grouped_mm.default(*args, **kwargs)
    offsets: Any = args[2] if len(args) > 2 else kwargs.get("offs")
    groups = () if left.dim() + right.dim() == 5 else (offsets.shape[0] if left.dim() == 2 else left.shape[0],)
    shape = (*groups, left.shape[-2], right.shape[-1])
    dtype = kwargs.get("out_dtype") or left.dtype
    step = 16 // dtype.itemsize
    width = -(-shape[-1] // step) * step
    strides = (shape[-2] * width, width, 1)[-len(shape) :]
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _valued(func: Any) -> Answer:
    """Run an operator on values alone."""

    def answer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args[0].is_meta:
            return func(*args, **kwargs)
        value = value_of(args[0])
        made = func(torch.zeros(args[0].shape, dtype=args[0].dtype) if value is None else value, *args[1:], **kwargs)
        return tuple(map(_on_meta, made)) if isinstance(made, tuple) else _on_meta(made)

    return answer
