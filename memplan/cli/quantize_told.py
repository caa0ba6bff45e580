"""What a person is told while a model is quantized: which block, which module, what the last lost, the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from memplan.cli.progress import Step
from memplan.quantize.memory_watch import MemoryWatch
from memplan.report.quantize_text import duration


class Told:
    """Tells the steps of a run: a line for every block, and on a terminal every module as it is worked on.

    The time left is that of the blocks so far for those to come, and `proof_seconds` as it was forecast.
    """

    def __init__(
        self, step: Step, watch: MemoryWatch, blocks: Sequence[Mapping[str, Any]], proof_seconds: float | None
    ) -> None:
        self._step, self._watch, self._blocks, self._proof_seconds = step, watch, blocks, proof_seconds
        self._start, self._first = time.monotonic(), len(blocks)
        self._now = (0, 0)

    def block(self, done: int, total: int, name: str) -> None:
        """A block begins, or all are done."""
        self._now = (done, total)
        self._watch.phase = name or "writing"
        parts = [name, self._loss(), self._time_left(done, total)]
        self._step(done, total, ", ".join(part for part in parts if part))

    def module(self, name: str) -> None:
        """A module of a block is worked on."""
        if sys.stderr.isatty():
            self._step(*self._now, name)

    def _loss(self) -> str:
        """What the last block lost, against rounding alone: the layer's mean, noise over signal."""
        layers = self._blocks[-1]["layers"].values() if self._blocks else ()
        known = [layer for layer in layers if layer["relative_error"] is not None]
        if not known:
            return ""
        error, plain = (
            sum(layer[key] for layer in known) / len(known) for key in ("relative_error", "relative_error_of_rounding")
        )
        return f"error of the last {error:.2%} (rounding alone {plain:.2%})"

    def _time_left(self, done: int, total: int) -> str:
        finished = done - self._first
        if finished < 1 or done == total:
            return ""
        each = (time.monotonic() - self._start) / finished
        return f"about {duration(each * (total - done) + (self._proof_seconds or 0.0))} left"
