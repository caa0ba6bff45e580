"""What is handed to an emitter, and what comes back: a budget with everything that a config must say, and files."""

from __future__ import annotations

from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ServingSettings
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EmittedFile:
    """One file: its usual name, its whole text, and its media type (`application/yaml`)."""

    name: str
    text: str
    media_type: str = "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """What one format comes to. The first file is the one that goes to stdout; `notes` are for the reader's eyes and
    go to stderr.
    """

    files: tuple[EmittedFile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmitSubject:
    """One serving setup to write down.

    `model_reference` is what the engine loads (a hub id or an absolute path), `spec_name` the model that it is.
    `draft_reference` is the model that drafts (`mtp`: the model's own layers). `settings` holds what was asked for,
    None where the engine's default was taken; `budget.settings` has every value with its default filled in.
    `quantization` is what the engine must be told to quantize while it loads, None when the checkpoint says it itself.
    `version` is the engine's release that the budget was computed for, `checked_for` says the same for a person.
    `command` makes the same emission again, in any directory. `changes` say how the setup differs from what was asked,
    because that does not fit.
    """

    spec_name: str
    model_reference: str
    spec: ModelSpec
    gpu: GpuSpec
    budget: MemoryBudget
    settings: ServingSettings
    engine: str
    version: str
    quantization: str | None
    command: str
    checked_for: str
    revision: str | None = None
    draft_reference: str | None = None
    changes: tuple[str, ...] = ()
