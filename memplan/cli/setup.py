"""A serving setup as it was asked for and answered."""

from __future__ import annotations

from memplan.cli.questions import Asked
from memplan.domain.budget import MemoryBudget
from memplan.pipeline import Question
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One question with its answer, the options that ask it, and in words how it differs from what was asked first.

    `asked.given` asks exactly this question: one device, one engine, one weight scheme.
    """

    asked: Asked
    question: Question
    budget: MemoryBudget
    changes: tuple[str, ...] = ()
