"""A program of somebody's own, watched while it runs: its models are named, its training steps cut into phases.

What is written to is a recorder: the dispatch mode of `recorder` on the CPU, or `device_recorder` on a GPU. Nothing of
the program has to change; what torch runs through is wrapped while the watch lasts, and put back afterwards.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from memplan.domain.timeline import Category, Phase
from memplan.profile.generation import tensors_of
from memplan.profile.optimizers import state_tensors

_CACHES = ("past_key_values", "cache_params")


class Recording(Protocol):
    """What a program is written down in."""

    def begin(self, phase: Phase, iteration: int = 0) -> None: ...
    def name_modules(self, model: torch.nn.Module) -> None: ...
    def hold(self, tensor: torch.Tensor, category: Category, *, module: str = "", operator: str = "") -> None: ...
    def classify(self, tensors: Iterable[torch.Tensor], category: Category) -> None: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *caught: Any) -> None: ...


class Program:
    """Tells a recording what a program does. Phases that the program names itself come before those found here."""

    def __init__(self, recording: Recording, *, on_phase: Callable[[], None] = lambda: None) -> None:
        self._on_phase = on_phase
        self.models: list[str] = []
        self._recording = recording
        self._met: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._depth = 0
        self._phase: Phase | None = None
        self._times: dict[Phase, int] = {}
        self._is_named = False
        self._undo = contextlib.ExitStack()

    def begin(self, phase: Phase) -> None:
        """Start a phase, once more if it has been before."""
        self._on_phase()
        self._phase = phase
        number = self._times[phase] = self._times.get(phase, -1) + 1
        self._recording.begin(phase, number)

    @contextlib.contextmanager
    def named(self, phase: Phase) -> Iterator[None]:
        """A stretch that the program says is a phase; afterwards nobody says what it does."""
        outer, was_named = self._phase, self._is_named
        self._is_named = True
        self.begin(phase)
        try:
            yield
        finally:
            self._is_named = was_named
            self.begin(outer or "run")

    def meet(self, model: torch.nn.Module) -> None:
        """Learn the names of a model's modules, and that what it holds are weights, also from before the watch."""
        self._met.add(model)
        if next(model.parameters(), None) is not None:
            self.models.append(type(model).__name__)
        self._recording.name_modules(model)
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self._recording.hold(tensor, "weights", module=name.rpartition(".")[0], operator="load")
            self._recording.classify([tensor], "weights")

    def __enter__(self) -> Program:
        self._undo.enter_context(self._recording)
        self.begin("run")
        self._wrap(torch.nn.Module, "__call__", self._calling)
        self._wrap(torch.autograd, "backward", self._going_backward)
        for handle in (
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ):
            self._undo.callback(handle.remove)
        return self

    def __exit__(self, *caught: Any) -> None:
        self._undo.__exit__(*caught)

    def _wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        plain = getattr(owner, name)
        setattr(owner, name, make(plain))
        self._undo.callback(setattr, owner, name, plain)

    def _found(self, phase: Phase) -> None:
        if not self._is_named and self._phase != phase:
            self.begin(phase)

    def _calling(self, plain: Any) -> Any:
        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return plain(module, *args, **kwargs)
            if module not in self._met:
                self.meet(module)
            self._found(_phase_of(module, kwargs))
            self._depth += 1
            try:
                made = plain(module, *args, **kwargs)
            finally:
                self._depth -= 1
            for name in _CACHES:
                if (cache := getattr(made, name, None)) is not None:
                    self._recording.classify(tensors_of(cache), "kv_cache")
            return made

        return call

    def _going_backward(self, plain: Any) -> Any:
        def backward(*args: Any, **kwargs: Any) -> Any:
            self._found("backward")
            self._depth += 1  # what is computed again for checkpointing is part of it
            try:
                made = plain(*args, **kwargs)
            finally:
                self._depth -= 1
            parameters = (each for model in self._met for each in model.parameters())
            self._recording.classify([each.grad for each in parameters if each.grad is not None], "gradients")
            return made

        return backward

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._found("optimizer")

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._recording.classify(state_tensors(optimizer), "optimizer_state")


def _phase_of(module: torch.nn.Module, kwargs: dict[str, Any]) -> Phase:
    """What a call of a model is, by how it is called: with a cache, text is written, one token after the prompt."""
    if module.training and torch.is_grad_enabled():
        return "forward"
    tokens = kwargs.get("input_ids")
    if isinstance(tokens, torch.Tensor) and any(kwargs.get(name) is not None for name in _CACHES):
        return "decode" if tokens.shape[-1] == 1 else "prefill"
    return "run"
