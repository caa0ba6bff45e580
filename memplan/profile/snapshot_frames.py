"""Whose code made an allocation, and what it is for, as far as the frames of a snapshot tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from memplan.domain.timeline import CATEGORIES, Category
from memplan.profile.events import Label
from memplan.records import replace

# Names that torch.profiler gives to what it could tell apart, and that memplan's own files have.
_NAMED: dict[str, Category] = {
    **{name: name for name in CATEGORIES},
    "parameter": "weights",
    "gradient": "gradients",
    "activation": "activations",
    "input": "activations",
    "autograd_detail": "activations",
    "temporary": "workspace",
}
# The names of files in the frames that memplan writes: an operator and a module have no line.
OPERATOR_FRAME, MODULE_FRAME = "operator", "module"
_LOADING = ("modeling_utils.py", "core_model_loading.py", "torch/serialization.py", "safetensors/torch.py")
_MOVING = ("_apply", "load_state_dict", "_load_from_state_dict")
_CACHES = ("cache_utils.py", "kv_cache", "continuous_batching")
_PASSING = ("contextlib.py", "_ops.py")
_DISPATCHED = "at::_ops::"
_ENGINE = "torch::autograd::Engine::"
_FETCHES = ("empty", "new_empty", "resize")
_OVERLOAD = re.compile(r"_(?=[A-Z]).*")
_MOST_FRAMES = 200

Frames = list[Any]


class Origins:
    """Reads frames once for each list of them. Frames are innermost first, of Python or of C++."""

    def __init__(self) -> None:
        # By the identity of the list, which the snapshot keeps alive, and then by what it says.
        self._by_list: dict[int, Origin] = {}
        self._by_frame: dict[tuple[str, str, str], Label] = {}
        self._by_module: dict[tuple[Label, str], Label] = {}

    def of(self, frames: object) -> Origin:
        """Return where frames lead; without any, nothing is known."""
        if not isinstance(frames, list) or not frames:
            return NOWHERE
        known = self._by_list.get(id(frames))
        if known is None:
            known = self._by_list[id(frames)] = self._read(frames)
        return known

    def of_entry(self, entry: Mapping[str, object]) -> Origin:
        """The same for a step of a history. Newer ones have the forward pass's frames beside those of the backward;
        memplan's own have the module that ran.
        """
        origin = self.of(entry.get("frames"))
        forward = self.of(entry.get("forward_frames")) if origin.in_backward else NOWHERE
        label = forward.label if forward.label.where else origin.label
        module = entry.get("module")
        if isinstance(module, str):
            label = self._by_module.setdefault((label, module), replace(label, module=module))
        if label is origin.label:
            return origin
        return Origin(label, origin.category, origin.in_backward, origin.in_optimizer)

    def _read(self, frames: Frames) -> Origin:
        plain = [_plain(frame) for frame in frames[:_MOST_FRAMES] if isinstance(frame, Mapping)]
        if not plain:
            return NOWHERE
        if any(file in (OPERATOR_FRAME, MODULE_FRAME) for file, _, _ in plain):
            return Origin(_own(plain), None, False, False)
        theirs = next((frame for frame in plain if _is_theirs(frame[0])), None)
        operator = _operator(plain[: plain.index(theirs)] if theirs else plain)
        key = (operator, *(theirs[:1] if theirs else ("",)), f"{theirs[1]} {theirs[2]}" if theirs else "")
        label = self._by_frame.get(key)
        if label is None:
            where = f"{_short(theirs[0])}:{theirs[1]} {theirs[2]}" if theirs else ""
            module = _short(theirs[0]).removesuffix(".py").replace("/", ".") if theirs else ""
            label = self._by_frame[key] = Label(module=module, operator=operator, where=where)
        return Origin(label, *_purpose(plain))


def empties_cache(entry: Mapping[str, object]) -> bool:
    """Whether a step was made by torch.cuda.empty_cache."""
    frames = entry.get("frames")
    if not isinstance(frames, list):
        return False
    return any(isinstance(frame, Mapping) and frame.get("name") == "empty_cache" for frame in frames[:_MOST_FRAMES])


class Origin:
    """A label, the category that the frames show (None: none), and whether autograd or an optimizer was at work."""

    __slots__ = ("category", "in_backward", "in_optimizer", "label")

    def __init__(self, label: Label, category: Category | None, in_backward: bool, in_optimizer: bool) -> None:
        self.label = label
        self.category = category
        self.in_backward = in_backward
        self.in_optimizer = in_optimizer


NOWHERE = Origin(Label(), None, False, False)


def _own(frames: list[tuple[str, int, str]]) -> Label:
    """The label that memplan wrote as frames."""
    named = {file: name for file, _, name in frames}
    operator, _, made = named.pop(OPERATOR_FRAME, "").partition(" ")
    module = named.pop(MODULE_FRAME, "")
    where = next((f"{file}:{line} {name}" for file, line, name in frames if file in named), "")
    dtype, _, sides = made.removesuffix("]").partition("[")
    shape = tuple(int(side) for side in sides.split(", ") if side.isdigit() and len(side) < 19)
    return Label(module, operator, where, shape, dtype)


def named_category(name: object) -> Category | None:
    """The category that an entry names itself, if it does."""
    return _NAMED.get(name.lower()) if isinstance(name, str) else None


def _purpose(frames: list[tuple[str, int, str]]) -> tuple[Category | None, bool, bool]:
    in_optimizer = any("torch/optim/" in file for file, _, _ in frames)
    # A backward pass runs on a thread of its own, which has no Python frames: then only C++ tells.
    in_backward = any(
        name.endswith("backward") if "torch/" in file else name.startswith(_ENGINE) for file, _, name in frames
    )
    category: Category | None = None
    if any(part in file for file, _, _ in frames for part in _CACHES):
        category = "kv_cache"
    elif any(file.endswith(_LOADING) or (name in _MOVING and "torch/nn" in file) for file, _, name in frames):
        category = "weights"
    return category, in_backward, in_optimizer


def _plain(frame: Mapping[str, object]) -> tuple[str, int, str]:
    line = frame.get("line")
    return str(frame.get("filename", "")), line if isinstance(line, int) else 0, str(frame.get("name", ""))


def _is_theirs(file: str) -> bool:
    """Whether a frame is Python outside of torch and of what only passes calls on."""
    return (
        file.endswith(".py") and "site-packages/torch/" not in file and not file.endswith(("contextlib.py", "_ops.py"))
    )


def _short(file: str) -> str:
    """A path from its package on, or its last three parts."""
    if "site-packages/" in file:
        return file.rpartition("site-packages/")[2]
    return "/".join(file.split("/")[-3:]).lstrip("/")


def _operator(frames: list[tuple[str, int, str]]) -> str:
    """What torch ran, of the frames inside of it: the operator that C++ names, else the innermost Python function.

    Operators that only fetch memory for another are passed over where that other one is known.
    """
    named = [name.removeprefix(_DISPATCHED).partition("::")[0] for _, _, name in frames if name.startswith(_DISPATCHED)]
    if named:
        operator = next((name for name in named if not name.startswith(_FETCHES)), named[0])
        return "aten." + _OVERLOAD.sub("", operator)
    for file, _, name in frames:
        if file.endswith(".py"):
            return f"{file.rpartition('/')[2].removesuffix('.py')}.{name}"
    return ""
