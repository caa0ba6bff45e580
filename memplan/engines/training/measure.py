"""How much one training question takes of one GPU, and whether that fits: what the answer and each remedy compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from memplan.budget.training.device import PhaseHeld
from memplan.budget.training.periodic import StepHeld, run_evaluation, run_step
from memplan.domain.budget import Verdict
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.engines.training.fitted import group_of, load_fitted
from memplan.engines.transformers.fitted import context_bytes
from memplan.engines.transformers.fitted import load_fitted as load_transformers
from memplan.engines.vllm.fitted import load_fitted as load_vllm
from memplan.engines.vllm.overheads import group_bytes
from memplan.records import dataclass
from memplan.units import MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRun:
    """A step with what is held at its peaks, what is reserved, and an evaluation. Nothing of it depends on the GPU."""

    spec: ModelSpec
    training: TrainingSpec
    step: StepHeld
    reserved_bytes: int
    evaluation: PhaseHeld


_LATEST_RUNS: list[FullRun] = []
_MOST_RUNS = 4


def run_in_full(spec: ModelSpec, training: TrainingSpec) -> FullRun:
    """Run a step and an evaluation; one of the latest runs where it is the same, as for GPUs that differ in size."""
    for known in _LATEST_RUNS:
        if known.spec is spec and known.training == training:
            return known
    step = run_step(spec, training)
    made = FullRun(
        spec=spec,
        training=training,
        step=step,
        reserved_bytes=step.find_reserved(),
        evaluation=run_evaluation(spec, training, step.phases[0]),
    )
    _LATEST_RUNS[:] = [made, *_LATEST_RUNS[: _MOST_RUNS - 1]]
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A step on one GPU. `low_bytes` and `high_bytes` bound what is allocated at 90 %.

    Where less is left than the allocator would like to keep, it gives unused segments back, which costs time: a step
    fits for certain where what is reserved has room, and cannot where what is allocated has none. What is reserved
    takes as long to find as the step, and is looked for when it is asked for.
    """

    training: TrainingSpec
    step: StepHeld
    find_reserved: Callable[[], int]
    context_bytes: int
    nccl_bytes: int
    low_bytes: int
    high_bytes: int
    memory_bytes: int

    @property
    def allocated_bytes(self) -> int:
        return self.step.peak.peak_bytes

    @property
    def reserved_bytes(self) -> int:
        """What the allocator keeps; what is allocated where that has no room, unless all was asked for."""
        return self.find_reserved()

    @property
    def room_bytes(self) -> int:
        """What is left for torch."""
        return self.memory_bytes - self.context_bytes - self.nccl_bytes

    @property
    def verdict(self) -> Verdict:
        if self.low_bytes > self.room_bytes:
            return "does_not_fit"
        has_room = self.high_bytes <= self.room_bytes and self.reserved_bytes <= self.room_bytes
        return "fits" if has_room else "tight"

    @property
    def shortfall_bytes(self) -> int:
        """What is likely missing."""
        return max(0, self.allocated_bytes - self.room_bytes)


def measure(
    spec: ModelSpec, training: TrainingSpec, gpu: GpuSpec, free_bytes: int | None, *, in_full: bool = False
) -> Measured:
    """Run the step without numbers, and put what a process takes beside torch. `in_full` says what is held, too."""
    full = run_in_full(spec, training) if in_full else None
    step = full.step if full else run_step(spec, training, with_held=False)
    return measured_on(training, step, gpu, free_bytes, reserved_bytes=full.reserved_bytes if full else None)


def measured_on(
    training: TrainingSpec, step: StepHeld, gpu: GpuSpec, free_bytes: int | None, *, reserved_bytes: int | None = None
) -> Measured:
    """A step that has run, on one GPU; what is reserved is looked for once, where it is not known and matters."""
    low, high = load_fitted().intervals[group_of(training)]
    allocated = step.peak.peak_bytes
    context = context_bytes(gpu, load_transformers())
    nccl = _nccl_bytes(gpu, training.layout)
    memory = free_bytes or gpu.memory_bytes
    is_out = allocated * (1 + low) > memory - context - nccl
    if reserved_bytes is None and is_out:
        reserved_bytes = allocated
    return Measured(
        training=training,
        step=step,
        find_reserved=cache(step.find_reserved if reserved_bytes is None else lambda: reserved_bytes),
        context_bytes=context,
        nccl_bytes=nccl,
        low_bytes=round(allocated * (1 + low)),
        high_bytes=round(allocated * (1 + high)),
        memory_bytes=memory,
    )


def _nccl_bytes(gpu: GpuSpec, layout: TrainingLayout) -> int:
    """NCCL's buffers of every group of ranks: data, tensor, pipeline, experts."""
    fitted = load_vllm()
    groups = (layout.data * layout.context, layout.tensor, layout.pipeline, layout.expert)
    kept = sum(group_bytes(gpu, ranks, fitted) for ranks in groups if ranks > 1)
    return min(kept, 3 * 1024 * MIB)
