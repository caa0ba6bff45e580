"""What makes a training run smaller, each change by itself: bytes saved and time, both computed."""

from __future__ import annotations

from typing import Any

from memplan.budget.training.step_time import step_time
from memplan.catalog.efficiency import efficiency_for
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.training_budget import TrainingBudget
from memplan.domain.training_plan import TrainingChange
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.choose import choose_training
from memplan.engines.training.held import trained_parameters
from memplan.engines.training.remedies import FLAGS
from memplan.errors import MemplanError
from memplan.records import replace

_FIELDS = {flag: name for name, flag in FLAGS.items()}


def changes_of(
    spec: ModelSpec, gpu: GpuSpec, question: TrainingQuestion, asked: TrainingBudget
) -> tuple[tuple[TrainingChange, ...], str | None]:
    """Every remedy of a budget with the time that a token takes with it, and the cheapest that makes it fit."""
    now = _seconds_per_token(spec, gpu, question)
    changes = []
    for remedy in asked.remedies:
        after = _seconds_per_token(spec, gpu, _changed(question, remedy.change))
        changes.append(
            TrainingChange(
                change=remedy.change.format(gpu=gpu.name),
                saves_bytes=remedy.saves_bytes,
                verdict=remedy.verdict,
                time_fraction=after / now - 1 if after and now else None,
                note=remedy.note,
            )
        )
    cheapest = asked.cheapest
    return tuple(changes), cheapest.change.format(gpu=gpu.name) if cheapest else None


def _seconds_per_token(spec: ModelSpec, gpu: GpuSpec, question: TrainingQuestion) -> float | None:
    try:
        training = choose_training(question, spec, gpu)
    except MemplanError:
        return None
    efficiency = efficiency_for("transformers", gpu)
    time = step_time(spec, training, trained_parameters(spec, training), gpu, efficiency)
    return time.total_s / time.tokens * training.layout.ranks if time else None


def _changed(question: TrainingQuestion, flags: str) -> TrainingQuestion:
    """The question with the flags of a remedy."""
    words = flags.split()
    fields: dict[str, Any] = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        if flag == "--offload":
            fields["offloaded"] = tuple(value.split(","))
        elif flag == "--gpu":
            fields |= {"num_gpus": int(value.rpartition("x")[2]), "data": 1}
        else:
            name = _FIELDS[flag]
            fields[name] = int(value) if name in ("micro_batch", "accumulation") else value
    if fields.get("method") in ("lora", "qlora", "dora"):
        fields["precision"] = None
    return replace(question, **fields)
