"""What every engine's answer repeats of its inputs: how names were taken, and what was assumed of the model."""

from __future__ import annotations

from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec


def input_notes(spec: ModelSpec, gpu: GpuSpec) -> tuple[str, ...]:
    """The notes of a model and of a GPU's name, for the warnings of a budget."""
    return (*spec.notes, gpu.resolved_note) if gpu.resolved_note else spec.notes
