"""A training step that was profiled once and is remembered: what was run, with which packages, what each phase held."""

from __future__ import annotations

from typing import Literal

from memplan.records import dataclass

ProfiledPhaseName = Literal["load", "forward", "backward", "optimizer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledStep:
    """Everything that a profiled step depends on, beside the model's config and the packages that run it.

    `dtype` is the type of weights; `computed_in` the one that FSDP gathers and computes in, if it is another.
    `compute_capability` is the least of the GPUs with the same workspaces.
    """

    batch: int
    tokens: int
    resolution: int | None
    images: int
    dtype: str
    computed_in: str | None
    attention: str
    optimizer: str
    checkpointing: bool
    lora_rank: int | None
    lora_targets: tuple[str, ...]
    sharing: Literal["none", "ddp", "fsdp"]
    num_ranks: int
    compute_capability: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledHeld:
    """What is alive at a phase's peak: a category of the timeline, and the largest of it by the module's name."""

    category: str
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledPhase:
    """One phase: the most that is allocated, what is left, the most that is reserved, what was alive at the peak."""

    name: ProfiledPhaseName
    peak_bytes: int
    after_bytes: int
    reserved_bytes: int
    held: tuple[ProfiledHeld, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProfile:
    """One profiled step. `parameters` are of what was run, `trained_parameters` of them are trained, over all ranks."""

    step: ProfiledStep
    architecture: str
    parameters: int
    trained_parameters: int
    versions: dict[str, str]
    phases: tuple[ProfiledPhase, ...]
    notes: tuple[str, ...] = ()
