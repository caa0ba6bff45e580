"""A serving setup as it was asked for and answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.cli.questions import Asked
from memplan.domain.budget import MemoryBudget
from memplan.pipeline import Question, answer
from memplan.records import dataclass, replace

_TOLD = ("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One question with its answer, the options that ask it, and in words how it differs from what was asked first.

    `asked.given` asks exactly this question: one device, one engine, one weight scheme.
    """

    asked: Asked
    question: Question
    budget: MemoryBudget
    changes: tuple[str, ...] = ()


def refused_start(budget: MemoryBudget) -> Mapping[str, Any] | None:
    """Why the engine would not start, as the tables of what is servable have it; None where it starts."""
    found = budget.extra.get("servable")
    return found if isinstance(found, Mapping) and not found["runs"] else None


def told(question: Question) -> MemoryBudget:
    """Answer a question as it is once its config says every default outright: what is told has other intervals."""
    question = replace(question, with_remedies=False)
    budget = answer(question)
    if question.engine != "vllm":
        return budget
    found: dict[str, Any] = {name: budget.settings[name] for name in _TOLD}
    return answer(replace(question, settings=replace(question.settings, **found)))
