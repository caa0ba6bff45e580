"""A plan of training: how to train a model on given GPUs, found by search; what was tried, and what ruled it out."""

from __future__ import annotations

from typing import Literal, get_args

from memplan.domain.gpu import GpuSpec
from memplan.domain.training import TrainingSpec
from memplan.domain.training_budget import TrainingBudget, TrainingLimits
from memplan.domain.training_question import TrainingQuestion
from memplan.records import dataclass

TrainingGoal = Literal["throughput", "cost", "memory"]
TRAINING_GOALS: tuple[TrainingGoal, ...] = get_args(TrainingGoal)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOffer:
    """One GPU type and the numbers of it that may be taken. `free_bytes` is what is left of a shared card."""

    gpu: GpuSpec
    counts: tuple[int, ...]
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlanRequest:
    """A question with what is left to the search. `fixed` names the fields of `question` that were asked for;
    `global_batch` is the number of sequences of a step, None where any number will do.
    """

    goal: TrainingGoal
    question: TrainingQuestion
    fixed: frozenset[str]
    offers: tuple[TrainingOffer, ...]
    global_batch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCandidate:
    """One way to train that has room. Times are seconds of a step; `mfu` counts what training needs of every token.

    `changes` are the rungs that it took because nothing fitted without them.
    """

    gpu: GpuSpec
    question: TrainingQuestion
    training: TrainingSpec
    allocated_bytes: int
    room_bytes: int
    is_tight: bool
    tokens_per_step: int
    step_s: float
    parts_s: dict[str, float]
    tokens_per_s: float
    mfu: float
    usd_per_hour: float | None
    changes: tuple[str, ...] = ()

    @property
    def num_gpus(self) -> int:
        return self.training.layout.ranks

    @property
    def usd_per_billion_tokens(self) -> float | None:
        if self.usd_per_hour is None:
            return None
        return self.usd_per_hour * 1e9 / self.tokens_per_s / 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRejection:
    """A region of candidates that is out, with the reason and how many they are."""

    region: str
    reason: str
    candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingChange:
    """One change of the run as it was asked for: bytes saved, and how much longer a token takes (computed)."""

    change: str
    saves_bytes: int
    verdict: str
    time_fraction: float | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlanAnswer:
    """`asked` is the budget of the run as asked for, without a search; `changes` are what makes it smaller, each by
    itself, and `smallest` the one (or the cheapest ones together) that makes it fit; `winner` is None where none fits.
    """

    goal: TrainingGoal
    asked: TrainingBudget
    changes: tuple[TrainingChange, ...]
    smallest: str | None
    winner: TrainingCandidate | None
    limits: TrainingLimits | None
    alternatives: tuple[TrainingCandidate, ...]
    rejections: tuple[TrainingRejection, ...]
    considered: int
    notes: tuple[str, ...] = ()
