"""A callback of transformers' Trainer that profiles some steps of a training run.

    Trainer(..., callbacks=[TrainerProfile(steps=3, output="training.json")])

It watches from the start of the training on, so that what was made before its first step is there, and ends after
`steps` steps; the training goes on.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from transformers import TrainerCallback

from memplan.profile.attach import Attached, Where


class TrainerProfile(TrainerCallback):
    """Profiles the first `steps` steps. `recording.timeline` has the profile when they are over."""

    def __init__(
        self,
        steps: int = 3,
        *,
        device: Where = "auto",
        output: str | os.PathLike[str] | None = None,
        show: bool = True,
    ) -> None:
        self.recording: Attached | None = None
        self._steps = steps
        self._device = device
        self._output = output
        self._show = show
        self._open = ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """Begin, with the model as weights."""
        from memplan.profile import record

        self.recording = self._open.enter_context(
            record("training", device=self._device, output=self._output, show=self._show)
        )
        if known.get("model") is not None:
            self.recording.watch(known["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """End after the last step that is wanted."""
        if state.global_step >= self._steps:
            self._open.close()

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        """End with the training, where that is shorter."""
        self._open.close()
