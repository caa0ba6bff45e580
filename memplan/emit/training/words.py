"""The budget of a training run in words, for the comments of every format."""

from __future__ import annotations

from memplan import __version__
from memplan.domain.training_budget import Category
from memplan.domain.training_emission import TrainingSubject
from memplan.units import format_count, format_gib

_VERDICTS = {"fits": "it fits", "tight": "it is tight: it may or may not fit", "does_not_fit": "IT DOES NOT FIT"}
GATHERED: tuple[Category, ...] = ("gathered_weights", "communication_buffers")
_KINDS = {"full": "all weights are trained", "lora": "LoRA", "dora": "DoRA", "qlora": "QLoRA"}


def header(subject: TrainingSubject, start: str) -> tuple[str, ...]:
    """The paragraphs above a config: what reads it, what it is of, the predicted peak, how to make it again."""
    budget = subject.budget
    return (
        start,
        f"{budget.model_name}, {format_count(budget.parameters)} parameters, {_KINDS[subject.training.method]}, on"
        f" {budget.num_gpus} x {budget.gpu_name} ({format_gib(budget.gpu_memory_bytes)})",
        f"Checked by memplan {__version__}: {peak(subject)}.",
        f"A step: {batch_words(subject)}.",
        *(f"NOTE: {change}." for change in subject.changes),
        f"Made by: {subject.command}",
    )


def peak(subject: TrainingSubject) -> str:
    """The predicted peak: the verdict, the phase, and what torch and nvidia-smi will say."""
    budget = subject.budget
    return (
        f"{_VERDICTS[budget.verdict]}; predicted peak {format_gib(budget.allocated_bytes)} allocated in"
        f" {budget.peak_phase}, {format_gib(budget.used_bytes)} of {format_gib(budget.gpu_memory_bytes)} in use on each"
        " GPU"
    )


def batch_words(subject: TrainingSubject) -> str:
    """How many tokens a step has, with its working: `8 ranks x 4 x 2 sequences of 4,096 tokens are 262,144 tokens`."""
    training = subject.training
    ranks = training.layout.data
    count = ranks * training.micro_batch * training.accumulation
    parts = f"{ranks} data-parallel x {training.micro_batch} at once x {training.accumulation} accumulated"
    return f"{parts}: {count:,} sequences of {training.sequence_tokens:,} tokens"


def held(subject: TrainingSubject, *categories: Category) -> str:
    """What some kinds of memory take at the peak: `optimizer state 3.74 GiB`; empty where they take nothing."""
    parts = [
        f"{line.name} {format_gib(line.size_bytes)}" for line in subject.budget.lines if line.category in categories
    ]
    return ", ".join(parts)
