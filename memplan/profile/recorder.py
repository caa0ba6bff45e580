"""The recorder: every storage that a running model makes on one device, until its last reference is gone.

One dispatch mode serves the meta device, the CPU and a GPU. It sits below autograd, so it sees what operators make and
not who differentiates them; a storage is watched by a weak reference, so that it is freed in the trace at the moment
the model lets go of it. What an operator takes inside itself and gives back before it returns is not seen here:
`inside` tells it (see `kernels`).

What describes an allocation is found cheaply: the module by a name that is kept while modules call each other, the
line of code by walking to the first frame outside of torch, both of a backward pass by the number that autograd gave
the operator in the forward pass. Frames, operators and labels are looked up once and remembered.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.domain.timeline import Capture, Category, Phase
from memplan.profile.accumulation import adds_in_place, lone_holders
from memplan.profile.code_lines import CodeLines
from memplan.profile.events import EventLog, Label
from memplan.profile.module_names import Origins, named_call, sequence_number
from memplan.profile.owners import Growth, owners
from memplan.profile.shapes import ShapeMemory
from memplan.profile.step_watch import as_if_capturing
from memplan.profile.work import WorkCounter
from memplan.records import replace

Inside = Callable[[tuple[Any, ...], dict[str, Any], Any], Iterable[int]]
Answer = Callable[[tuple[Any, ...], dict[str, Any]], Any]
_VIEW, _MAKES = 0, 1
# A tensor of all ranks together, and one by which torch only works out shapes.
_SHARED = ("DTensor", "AsyncCollectiveTensor")
_ELSEWHERE = (*_SHARED, "FakeTensor")
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_STATES: tuple[Category, ...] = ("weights", "gradients", "optimizer_state")
_EMPTIED = -1  # in the place of an allocation's number: the storage is there, and has no bytes
_LIFT = torch.ops.aten.lift_fresh.default
_ADD = torch.ops.aten.add.Tensor


class _Watch(weakref.ref):  # type: ignore[type-arg]
    """A weak reference to a storage that knows which allocation it is."""

    __slots__ = ("key", "number")
    key: int
    number: int


class Recorder(TorchDispatchMode):
    """Writes what is made and freed on `device_type` into `log` while it is entered.

    `stream` is the one that work goes to now, `graph` what was found of a capture. `inside` gives, by operator, the
    sizes in bytes of what it takes and returns while it runs; `answers` stands in for operators that cannot run on the
    device (those that ask for values of tensors that have none), and `note_value` is told what every operator made of
    what. `kept` is what the first of some operators takes for good, in bytes. `work` counts what operators compute and
    move.
    """

    def __init__(
        self,
        device_type: str,
        log: EventLog | None = None,
        *,
        inside: dict[Any, Inside] | None = None,
        answers: dict[Any, Answer] | None = None,
        note_value: Callable[[Any, Any, Any, Any], None] | None = None,
        kept: dict[Any, int] | None = None,
        work: WorkCounter | None = None,
    ) -> None:
        super().__init__()
        self.log = EventLog() if log is None else log
        self.module = ""
        self.stream = 0
        self._device_type = device_type
        self._inside = inside or {}
        self._answers = answers or {}
        self._note_value = note_value
        self._takes = self._kept = kept or {}
        self.work = work
        self.graph: Capture | None = None
        self._shapes = ShapeMemory() if device_type == "meta" else None
        self._plans: dict[Any, tuple[int, Inside | None, Answer | None, str]] = {}
        self._alive: dict[int, _Watch] = {}
        self._labels: dict[tuple[Any, ...], int] = {}
        self._lines = CodeLines()
        self.names: dict[int, str] = {}
        self._origins = Origins(("", ""))
        self._growth = Growth()
        self._follows_gradients = False
        self._is_backward = False
        self._is_open = False
        self._usual_category: Category = "unknown"
        self._library_work = ""

    def begin(self, phase: Phase, iteration: int = 0) -> None:
        """Start a phase: what was recorded before stays. Where runs of it hold more and more, see who does."""
        if self._growth.begins(phase, self._held_bytes()):
            self.name_owners()
        self._usual_category = "workspace" if phase == "optimizer" else "activations"
        self.log.begin(phase, iteration)
        if self.work is not None:
            self.work.begin()
        self._follows_gradients = phase == "forward"
        self._is_backward = phase == "backward"
        if phase == "forward":
            self._origins.clear()

    def name_modules(self, model: torch.nn.Module) -> None:
        """Take the dotted names that modules of `model` will be called by."""
        for name, module in model.named_modules():
            self.names[id(module)] = name

    def hold(self, tensor: torch.Tensor, category: Category, *, module: str = "", operator: str = "") -> None:
        """Note a tensor that was made outside of any operator, such as a weight; of one that is known, whose it is."""
        watch = self._alive.get(local(tensor).untyped_storage()._cdata)
        if watch is None:
            self._add(tensor, operator, category, module)
        elif watch.number != _EMPTIED:
            label = self.log.labels[self.log.label_of[watch.number]]
            self.log.label_of[watch.number] = self.log.label_number(replace(label, module=module))

    def classify(self, tensors: Iterable[torch.Tensor], category: Category) -> None:
        """Say what tensors that are alive are for."""
        for tensor in tensors:
            watch = self._alive.get(local(tensor).untyped_storage()._cdata)
            if watch is not None and watch.number != _EMPTIED and self.log.category(watch.number) != "weights":
                self.log.classify(watch.number, category)

    def name_owners(self) -> None:
        """Look who holds what is alive and is not meant to stay."""
        log = self.log
        numbers = {
            key: watch.number
            for key, watch in self._alive.items()
            if watch.number != _EMPTIED and log.category(watch.number) not in _STATES
        }

        def number_of(tensor: torch.Tensor) -> int | None:
            if tensor.device.type != self._device_type or type(tensor) not in _PLAIN:
                return None
            return numbers.get(tensor.untyped_storage()._cdata)

        log.holders.update(owners(number_of, numbers.values()))

    def _held_bytes(self) -> int:
        return sum(self.log.sizes[watch.number] for watch in self._alive.values() if watch.number != _EMPTIED)

    def stop_adding(self) -> None:
        """Write down no further allocation, only what becomes of those that are known."""
        self._device_type, self.work = "", None

    def renumber(self, moved: dict[int, int]) -> None:
        """Let storages that are alive stand for other allocations of the trace, by their numbers."""
        for watch in self._alive.values():
            watch.number = moved.get(watch.number, watch.number)

    def spike(self, sizes_bytes: Iterable[int], operator: str) -> None:
        """Note memory that is taken and given back at once, as a workspace."""
        label = self._label(operator, (), "")
        numbers = [self.log.allocate_as(size, label, "workspace", self.stream) for size in sizes_bytes if size > 0]
        for number in reversed(numbers):
            self.log.free(number)

    def empty_cache(self) -> None:
        """Give back to the device what is cached."""
        self.log.empty_cache()

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[None]:
        """What runs meanwhile goes to another stream, for which libraries take again what they keep."""
        before = self.stream, self._kept
        self.stream, self._kept = self.stream + 1, self._takes
        try:
            yield
        finally:
            self.stream, self._kept = before

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        """Run a step as a graph captures it, and return what replays it: that takes no memory, and does the work."""
        with self.side_stream(), as_if_capturing():
            step()
        if self.work is None:
            return lambda: None
        return partial(self.work.add, self.work.take())

    @contextlib.contextmanager
    def library(self, work: str, module: str) -> Iterator[None]:
        """What is made meanwhile is a workspace of a library that does `work` for a module."""
        before = self._library_work, self.module, self._usual_category
        self._library_work, self.module, self._usual_category = work, module, "workspace"
        try:
            yield
        finally:
            self._library_work, self.module, self._usual_category = before

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """What is made meanwhile is not on the device."""
        before, self._device_type = self._device_type, ""
        try:
            yield
        finally:
            self._device_type = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if types and _is_shared(types):
            return NotImplemented  # what of it is here comes by on its own
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = self._plan(func)
        makes, inside, answer, name = plan
        if self._kept and func in self._kept:
            self._keep(func, name)
        if func is _ADD and self._is_backward and adds_in_place(args, kwargs):
            return args[0] if self._device_type == "meta" else args[0].add_(args[1])
        if answer is not None:
            made = answer(args, kwargs or {})
        elif self._shapes is not None:
            made = self._shapes(func, args, kwargs or {})
        else:
            made = func(*args, **kwargs) if kwargs else func(*args)
        if self._note_value is not None:
            self._note_value(func, args, kwargs or {}, made)
        if self._follows_gradients:
            self._note_origin()
        if makes:
            if isinstance(made, torch.Tensor):
                self._add(made, name, None, None)
            elif isinstance(made, (list, tuple)):
                self._add_each(made, name)
        if self.work is not None and (makes or func._schema.is_mutable):
            in_backward = self._is_backward and not self.module
            self.work.count(func, args, kwargs or {}, made, self._origin()[0] if in_backward else self.module)
        if inside is not None:
            self.spike(inside(args, kwargs or {}, made), name)
        return made

    def _add_each(self, made: Any, name: str) -> None:
        for each in made:
            if isinstance(each, torch.Tensor):
                self._add(each, name, None, None)
            elif isinstance(each, (list, tuple)):
                self._add_each(each, name)

    def _add(self, tensor: torch.Tensor, name: str, category: Category | None, module: str | None) -> None:
        if tensor.device.type != self._device_type:
            return
        if type(tensor).__name__ in _ELSEWHERE:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        if not size:
            return
        watch = _Watch(storage, self._freed)
        watch.key = key
        label = self._label(self._library_work or name, tensor.shape, tensor.dtype, module)
        watch.number = self.log.allocate_as(size, label, category or self._usual_category, self.stream)
        self._alive[key] = watch

    def _freed(self, watch: _Watch) -> None:
        del self._alive[watch.key]
        if self._is_open and watch.number != _EMPTIED:
            self.log.free(watch.number)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        """A storage has another size than before, as FSDP empties and fills those of gathered weights."""
        watch = self._alive.get(storage._cdata)
        if watch is None:
            return
        size = storage.nbytes()
        if watch.number != _EMPTIED:
            if size == self.log.sizes[watch.number]:
                return
            self.log.free(watch.number)
        watch.number = _EMPTIED
        if size:
            label = self._label(self._library_work or "UntypedStorage.resize_", (size,), "uint8", self.module)
            watch.number = self.log.allocate_as(size, label, "workspace", self.stream)

    def _keep(self, func: Any, name: str) -> None:
        """Note what a library takes when it is first used; those who share it find it there."""
        self.log.allocate_as(self._kept[func], self._label(name, (), ""), "workspace", self.stream)
        self._kept = {}

    def _plan(self, func: Any) -> tuple[int, Inside | None, Answer | None, str]:
        """Whether an operator can make storages, what it takes inside, and what stands in for it."""
        returns = func._schema.returns
        makes = _MAKES if any(each.alias_info is None for each in returns) or func is _LIFT else _VIEW
        name = str(func).removesuffix(".default")
        return makes, self._inside.get(func), self._answers.get(func), name

    def _label(self, name: str, shape: Any, dtype: Any, module: str | None = None) -> int:
        if module is not None:
            where = ""
        elif self._is_backward and not self.module:
            module, where = self._origin()
        else:
            module, where = self.module, self._where()
        key = (module, name, where, shape, dtype)
        number = self._labels.get(key)
        if number is None:
            kind = str(dtype).removeprefix("torch.")
            label = Label(module=module, operator=name, where=where, shape=tuple(shape), dtype=kind)
            number = self._labels[key] = self.log.label_number(label)
        return number

    def _where(self) -> str:
        return self._lines.of(sys._getframe(3))

    def _note_origin(self) -> None:
        """Remember where the operator stands that autograd has just numbered, for its backward pass."""
        number = sequence_number()
        if not self._origins.has(number):
            self._origins.note(number, (self.module, self._where()))

    def _origin(self) -> tuple[str, str]:
        """Module and line of the forward pass whose backward runs now."""
        return self._origins.of(torch._C._current_autograd_node())

    def __enter__(self) -> Any:
        lone_holders()
        self._plain_call = torch.nn.Module.__call__
        self._plain_resize = torch.UntypedStorage.resize_
        torch.nn.Module.__call__ = named_call(self, self._plain_call)
        torch.UntypedStorage.resize_ = _noted_resize(self, self._plain_resize)
        self._is_open = True
        return super().__enter__()

    def __exit__(self, *caught: Any) -> None:
        if self._growth.is_growing:
            self.name_owners()
        torch.nn.Module.__call__ = self._plain_call
        torch.UntypedStorage.resize_ = self._plain_resize
        self._is_open = False
        super().__exit__(*caught)


def _noted_resize(recorder: Recorder, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Resizing a storage, which no operator sees, told to the recorder."""

    def resize_(self: torch.UntypedStorage, size_bytes: int) -> Any:
        made = plain(self, size_bytes)
        recorder._resized(self)
        return made

    return resize_


def local(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor itself; of one that several ranks share, the part that is here."""
    part: torch.Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def _is_shared(types: Any) -> bool:
    return any(each.__name__ in _SHARED for each in types)
