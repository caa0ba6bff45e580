"""DeepSpeed's JSON, and the script's arguments beside it."""

from __future__ import annotations

from memplan.domain.emission import Emission
from memplan.domain.training_emission import TrainingSubject
from memplan.emit.training.arguments_python import arguments_file
from memplan.emit.training.words import batch_words, peak
from memplan.emit.training.zero_config import config_file


def emit(subject: TrainingSubject) -> Emission:
    """Return deepspeed.json and the script's arguments. Raises: UsageError for what DeepSpeed does not have."""
    files = [config_file(subject)]
    if subject.question.trainer != "deepspeed":
        files.append(arguments_file(subject, launcher="deepspeed"))
    return Emission(files=tuple(files), notes=(peak(subject), f"a step: {batch_words(subject)}"))
