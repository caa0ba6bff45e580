"""A decoding step whose tensors stay where they are, so that a CUDA graph can hold it: run, captured, replayed.

The order is that of PyTorch's own recipe: some runs on a stream of their own, what is cached given back, then one run
whose kernels are captured, with all that they take in a private pool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from memplan.domain.timeline import Capture
from memplan.profile.recorder import Recorder
from memplan.profile.step_watch import StepWatch, as_if_capturing, growing, merged

WARM_UP_STEPS = 3


class GraphedStep:
    """One step for the sequences of `tokens`, which may become `length` tokens long.

    `options` are what the model takes beside them, its cache among it; a mask if it takes one.
    """

    def __init__(
        self, model: Any, recorder: Recorder, tokens: torch.Tensor, length: int, options: dict[str, Any]
    ) -> None:
        self._model = model
        self._recorder = recorder
        self._options = options
        self._tokens = tokens[:, -1:].clone()
        self._mask = tokens.new_ones((tokens.shape[0], length)) if "attention_mask" in options else None
        self._logits: Any = None
        self._replay: Callable[[], None] | None = None

    def warm_up(self) -> Capture:
        """Run the step a few times, as a capture wants it, and say what stands in its way."""
        watches = []
        with self._recorder.side_stream():
            for number in range(WARM_UP_STEPS):
                if not number:
                    self._run()
                    continue
                watch = StepWatch(self._tokens.device.type, lambda: self._recorder.module)
                with as_if_capturing(), watch:
                    self._run()
                watches.append(watch)
        one, two = watches
        return Capture(breaks=merged([*two.breaks, *growing(one.made, two.made)]))

    def capture(self) -> None:
        """Capture the step in a graph, from an emptied cache on."""
        self._logits = None
        self._recorder.empty_cache()
        self._recorder.begin("capture")
        self._replay = self._recorder.capture(self._run)

    def replay(self) -> torch.Tensor:
        """Write the next token of every sequence, [batch, 1]."""
        assert self._replay is not None
        self._replay()
        logits = self._logits[:, -1].to(copy=True, dtype=torch.float32)
        made = torch.argmax(logits, dim=-1)[:, None]
        self._tokens.copy_(made)
        return made

    def _run(self) -> None:
        inputs = {**self._options, "input_ids": self._tokens}
        if self._mask is not None:
            inputs["attention_mask"] = self._mask
        self._logits = self._model(**inputs).logits
