"""Who holds tensors: the variable, attribute or closure at the end of the chain of Python objects that refer to them.

The garbage collector knows who refers to whom. The search goes from the tensors outwards, level by level, until it
comes to something with a name: a module's global, a function's local or closure, an attribute of a model. It ends after
some levels, or when its time is up; what it has not found then has no owner.

What no Python object holds is held by C++: where that was made in a forward pass, by an autograd graph, and the graph
by the tensors that came out of it.
"""

from __future__ import annotations

import gc
import inspect
import os
import sys
import time
import types
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar, cast

import torch

from memplan.domain.timeline import Phase
from memplan.units import KIB

_MOST_LEVELS = 12
_MOST_REFERRERS = 20_000
_SECONDS = 2.0
_LEAST_RUNS = 3
_LEAST_BYTES = 64 * KIB
_CONTAINERS = (list, tuple, set, frozenset, deque)
_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_FROM_MODULES = ("memplan.", "weakref", "_weakref")
Key = Hashable
Own = TypeVar("Own", bound=Hashable)
_GRAPH = "a graph's end"


class Growth:
    """Watches what is held when phases begin, for memory that grows from each run of a phase to the next.

    The first run makes what stays for good, and so does not count.
    """

    def __init__(self) -> None:
        self.is_growing = False
        self._held: dict[Phase, list[int]] = {}

    def begins(self, phase: Phase, held_bytes: int) -> bool:
        """Note that a phase begins; True when it has grown, and it is time to look who holds that."""
        held = self._held.setdefault(phase, [])
        held.append(held_bytes)
        if len(held) < _LEAST_RUNS or held[-1] - held[-2] < _LEAST_BYTES:
            return False
        self.is_growing = True
        # At the third, fourth, sixth, eighth, twelfth run and so on: a look takes some tenths of a second.
        number = len(held) // 3 if len(held) % 3 == 0 else len(held)
        return number & (number - 1) == 0


def owners(
    key_of: Callable[[torch.Tensor], Own | None], wanted: Iterable[Own] = (), *, seconds: float = _SECONDS
) -> dict[Own, str]:
    """Return, by key, who holds the tensors that `key_of` has a key for.

    `wanted` are keys of memory that somebody must hold: what no Python object refers to is taken for a graph's, also
    where its tensor is known to Python, because C++ keeps that alive. `seconds` are of the processor.
    """
    search = _Search(time.thread_time() + seconds)
    missing = set(wanted)
    has_wanted = bool(missing)
    for each in gc.get_objects():
        if not issubclass(type(each), torch.Tensor):
            continue
        key = key_of(each)
        if key is not None:
            search.add(each, key)
        if has_wanted and each.grad_fn is not None:
            search.add(each, (_GRAPH, id(each)))
    search.run()
    graphs = Counter(name for key, name in search.found.items() if _is_end(key))
    found = {cast("Own", key): name for key, name in search.found.items() if not _is_end(key)}
    unheld = missing - search.referred if search.referred is not None else ()
    for name, _ in graphs.most_common(1):
        found.update(dict.fromkeys(unheld, f"the autograd graph of {name}"))
    return found


def _is_end(key: Key) -> bool:
    return isinstance(key, tuple) and key[0] is _GRAPH


class _Search:
    """Goes from objects to those that refer to them, and carries along the keys of where it began."""

    def __init__(self, deadline_s: float) -> None:
        self.found: dict[Key, str] = {}
        self.referred: set[Key] | None = None  # what any Python object refers to, once that is known
        self._deadline_s = deadline_s
        self._front: dict[int, tuple[Any, set[Key]]] = {}
        self._seen: set[int] = set()
        self._locals = list(_locals())
        self._weak: dict[Key, str] = {}
        self._parts: dict[Key, str] = {}
        # The keys of dictionaries that something lies under, in case they are the attributes of an object.
        self._under: dict[tuple[int, Key], str] = {}

    def add(self, tensor: torch.Tensor, key: Key) -> None:
        """A tensor to begin with."""
        self._front.setdefault(id(tensor), (tensor, set()))[1].add(key)

    def run(self) -> None:
        """Go outwards until everything has an owner, there is nowhere to go, or the time is up."""
        for _ in range(_MOST_LEVELS):
            self._name_locals()
            self._front = {
                number: (each, left)
                for number, (each, keys) in self._front.items()
                if (left := keys - self.found.keys())
            }
            if not self._front or time.thread_time() > self._deadline_s:
                break
            self._front = self._outwards()
            if self.referred is None:
                self.referred = set().union(self.found, self._weak, *(keys for _, keys in self._front.values()))
        for names in (self._weak, self._parts):
            for key, name in names.items():
                self.found.setdefault(key, name)

    def _name_locals(self) -> None:
        for each, keys in self._front.values():
            for value, name in self._locals:
                if value is each:
                    if isinstance(each, torch.Tensor):  # often what is made just now, and kept by another as well
                        self._weak.update(dict.fromkeys(keys, name))
                    else:
                        self._name(keys, f"{_kind(each)}{name}")
                    break

    def _name(self, keys: Iterable[Key], name: str) -> None:
        for key in keys:
            part = self._parts.get(key)
            self.found.setdefault(key, f"{name} ({part})" if part else name)

    def _outwards(self) -> dict[int, tuple[Any, set[Key]]]:
        self._seen.update(self._front, map(id, self._front.values()))
        front, after = self._front, {}
        objects = [each for each, _ in front.values()]
        referrers = gc.get_referrers(*objects)
        del objects[:]
        for referrer in referrers[:_MOST_REFERRERS]:
            if id(referrer) in self._seen or self._is_own(referrer, referrers):
                continue
            held = [front[id(each)] for each in gc.get_referents(referrer) if id(each) in front]
            keys: set[Key] = set().union(*(keys for _, keys in held))
            if not held or self._named(referrer, held):
                continue
            after[id(referrer)] = (referrer, keys)
        return after

    def _is_own(self, referrer: Any, referrers: list[Any]) -> bool:
        """Whether it is this search that refers, or something else that is no owner of anything."""
        if referrer is referrers or isinstance(referrer, (types.FrameType, types.ModuleType)):
            return True  # locals are found by themselves: a running frame does not tell the collector of them
        if referrer is self._front or referrer is self._locals or referrer is self.__dict__:
            return True
        if isinstance(referrer, dict):
            home = dict.get(referrer, "__name__")
        else:
            home = referrer.__module__ if isinstance(referrer, types.FunctionType) else type(referrer).__module__
        return isinstance(home, str) and home.startswith(_FROM_MODULES)

    def _named(self, referrer: Any, held: list[tuple[Any, set[Key]]]) -> bool:
        """Give what a referrer holds the name that it has for it; False where one has to look further out."""
        if isinstance(referrer, dict) and not _is_module(referrer):
            for each, keys in held:
                name = next((str(name) for name, value in list(referrer.items()) if value is each), "?")
                self._under.update({(id(referrer), key): f"{_kind(each)}`{name}`" for key in keys})
            return False
        if isinstance(referrer, (*_CONTAINERS, types.CellType, torch.Tensor)):
            return False
        for each, keys in held:
            for key in keys:
                said = self._called(referrer, each, key)
                if isinstance(referrer, (dict, types.FunctionType, types.GeneratorType, torch.nn.Module)):
                    self._name([key], said)
                else:
                    self._parts.setdefault(key, said)  # an object, which somebody holds in turn
        return isinstance(referrer, (dict, types.FunctionType, types.GeneratorType, torch.nn.Module))

    def _called(self, referrer: Any, each: Any, key: Key) -> str:
        if isinstance(referrer, dict):
            return _global(referrer, each)
        if isinstance(referrer, types.FunctionType):
            return _closure(referrer, each)
        if isinstance(referrer, types.GeneratorType):
            where = os.path.basename(referrer.gi_code.co_filename)
            return f"{_kind(each)}in the generator {referrer.__name__} of {where}"
        kind = type(referrer).__name__
        attributes = getattr(referrer, "__dict__", {})
        if each is attributes:
            return f"{self._under.get((id(each), key), 'something')}, an attribute of {kind}"
        name = next((name for name, value in list(attributes.items()) if value is each), None)
        return f"{_kind(each)}`{name}`, an attribute of {kind}" if name else f"{_kind(each)}in an object of {kind}"


def _is_module(names: dict[Any, Any]) -> bool:
    return "__name__" in names and "__builtins__" in names


def _global(names: dict[str, Any], each: Any) -> str:
    file = names.get("__file__")
    where = os.path.basename(file) if isinstance(file, str) else str(names["__name__"])
    name = next((name for name, value in list(names.items()) if value is each), "?")
    return f"{_kind(each)}`{name}`, a global of {where}"


def _closure(function: Any, each: Any) -> str:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        if each is function.__closure__ or each is cell:
            return f"`{name}`, in the closure of {function.__qualname__}"
    return f"{_kind(each)}in the defaults of {function.__qualname__}"


def _kind(each: Any) -> str:
    """What an object is, before its name; nothing for a tensor, which everybody knows it to be."""
    return "" if isinstance(each, (torch.Tensor, types.CellType)) else f"{type(each).__name__} "


def _locals() -> Iterator[tuple[Any, str]]:
    """What functions that run now hold in their variables, each with the name and the place of that.

    Reading a frame's variables leaves a copy of them with the frame, which is emptied.
    """
    for outermost in sys._current_frames().values():
        frame: types.FrameType | None = outermost
        while frame is not None:
            code = frame.f_code
            if code.co_flags & inspect.CO_OPTIMIZED and not code.co_filename.startswith((_OURS, _TORCH)):
                found = frame.f_locals
                where = f"{code.co_name} in {os.path.basename(code.co_filename)}"
                for name, value in list(found.items()):
                    yield value, f"`{name}`, a local of {where}"
                if isinstance(found, dict):
                    found.clear()
            frame = frame.f_back
