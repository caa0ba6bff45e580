"""How far a profile is: its phases, one after the other, each as long as the layers that it goes through.

After a simulated run its trace is replayed, and looked through for what is the matter, which takes about as long as the
run did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from memplan.domain.timeline import Phase
from memplan.profile.request import ProfileRequest

# Is told how much of how much is done, and what comes next.
Step = Callable[[int, int, str], None]
# Steps of decoding that are run on the meta device, before the rest is written from them.
_SIMULATED_STEPS = 6
_BACKWARD = 2
_REPLAY_SHARE = 0.3


class Pace:
    """Is told what a run does, and tells `step` how many layers of how many are through."""

    def __init__(self, request: ProfileRequest, step: Step) -> None:
        self._request = request
        self._step = step
        self._layers = 1
        self._total = self._begun = self._done = self._length = 0
        self._name = "load"
        self._measure()

    def begin(self, phase: Phase) -> None:
        """A phase begins; the one before is through."""
        self._begun += self._length
        self._done, self._length = 0, self._weight(phase)
        self._name = phase
        self._tell()

    def layer(self) -> None:
        """One more layer is gone through."""
        self._done = min(self._done + 1, self._length)
        self._tell()

    def replay(self) -> None:
        """The run is through, and its trace is replayed."""
        self._after("replay", 0.0)

    def look(self) -> None:
        """The replay is through, and looked through."""
        self._after("findings", _REPLAY_SHARE)

    @contextlib.contextmanager
    def through(self, layers: list[Any]) -> Iterator[None]:
        """Count the layers that a model is made of as they are called. Compiled code has no calls to count."""
        self._layers = max(len(layers), 1)
        self._measure()
        if self._request.execution == "compiled":
            yield
            return
        handles = [layer.register_forward_pre_hook(lambda *_: self.layer()) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _after(self, name: str, share: float) -> None:
        self._step(self._total + int((self._whole() - self._total) * share), self._whole(), name)

    def _measure(self) -> None:
        phases = self._request.phases
        names: set[Phase] = {*phases, "prefill"} if {"decode", "capture"} & set(phases) else set(phases)
        names |= {"forward", "backward"} if "optimizer" in phases else set()
        names |= {"forward"} if "backward" in phases else set()
        runs = self._request.iterations + self._request.warmup
        self._total = max(1, runs * sum(self._weight(name) for name in names - {"load", "capture"}))

    def _whole(self) -> int:
        return self._total * (2 if self._request.device == "simulated" else 1)

    def _weight(self, phase: Phase) -> int:
        steps = self._request.output_tokens - 1
        steps = min(steps, _SIMULATED_STEPS) if self._request.device == "simulated" else steps
        if phase == "decode":
            return self._layers * steps
        if phase == "generate":
            return self._layers * (1 + steps)
        return self._layers * (_BACKWARD if phase == "backward" else 1)

    def _tell(self) -> None:
        self._step(min(self._begun + self._done, self._total), self._whole(), self._name)
