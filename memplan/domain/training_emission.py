"""What is handed to an emitter of a training config: a budget with the run that it is of."""

from __future__ import annotations

from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingSpec
from memplan.domain.training_budget import TrainingBudget
from memplan.domain.training_question import TrainingQuestion
from memplan.records import dataclass
from memplan.units import ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSubject:
    """One training run to write down.

    `model_reference` is what is loaded (a hub id or an absolute path). `training` has every setting with its trainer's
    default filled in. `machine_gpus` is how many GPUs a machine has. `command` makes the same emission again, in any
    directory. `changes` say how the run differs from what was asked, because that does not fit.
    """

    model_reference: str
    spec: ModelSpec
    gpu: GpuSpec
    question: TrainingQuestion
    training: TrainingSpec
    budget: TrainingBudget
    machine_gpus: int
    command: str
    revision: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def num_machines(self) -> int:
        return ceil_div(self.budget.num_gpus, self.machine_gpus)

    @property
    def processes_per_machine(self) -> int:
        return self.budget.num_gpus // self.num_machines
