"""Which GPUs hold a training run, when none was named."""

from __future__ import annotations

from collections.abc import Callable

from memplan.catalog.gpus import usual_gpus
from memplan.domain.model import ModelSpec
from memplan.domain.training_budget import TrainingBudget
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.answer import TrainingAsked, answer_training
from memplan.errors import MemplanError


def find_training_holders(
    spec: ModelSpec, question: TrainingQuestion, answer: Callable[[TrainingAsked], TrainingBudget] = answer_training
) -> tuple[list[TrainingBudget], tuple[str, ...]]:
    """The budget on every usual GPU that does not refuse it, the smallest first, and the names of the others.

    The number of GPUs is what the question's own ranks make. Raises: MemplanError where no GPU can be asked at all.
    """
    found: list[TrainingBudget] = []
    left_out: list[str] = []
    refused: MemplanError | None = None
    for gpu in usual_gpus():
        try:
            budget = answer(TrainingAsked(spec=spec, gpu=gpu, question=question, with_remedies=False))
        except MemplanError as error:
            refused = error
            left_out.append(gpu.name)
            continue
        if budget.verdict == "does_not_fit":
            left_out.append(gpu.name)
        else:
            found.append(budget)
    if refused is not None and not found and len(left_out) == len(usual_gpus()):
        raise refused
    return found, tuple(left_out)
