"""Profiled training steps, remembered on disk: one file for each, found without running anything.

A file's name is made of the model's config, of everything that the step depends on and of the packages that ran it.
Where these packages are not installed, the newest file of the same config and step answers. The folder is
`memplan/training` under XDG_CACHE_HOME; nothing is lost by removing it. Files may have been written by anybody: they
are read as JSON of a limited size, and one that is not what it should be is as if it were not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from memplan.domain.training_profile import (
    ProfiledHeld,
    ProfiledPhase,
    ProfiledPhaseName,
    ProfiledStep,
    TrainingProfile,
)

SCHEMA = "memplan.training-profile/1"
PACKAGES = ("torch", "transformers", "diffusers")
_LARGEST_FILE_BYTES = 1 << 20
_MOST_HELD = 64
_MOST_BYTES = 1 << 50
_LONGEST_TEXT = 500


def find_profile(
    config: Mapping[str, object], step: ProfiledStep, versions: Mapping[str, str]
) -> TrainingProfile | None:
    """Return the remembered profile of a step; None where there is none. `versions` are of what is installed here."""
    if "torch" in versions and "transformers" in versions:
        return _read(_file(config, step, versions), step)
    try:
        files = sorted(_folder().glob(f"{_key(config, step)}-*.json"), key=lambda each: -each.stat().st_mtime)
    except OSError:
        return None
    return next((found for each in files[:8] if (found := _read(each, step)) is not None), None)


def keep_profile(config: Mapping[str, object], profile: TrainingProfile) -> Path:
    """Remember a profile. Raises: OSError where the folder cannot be written."""
    path = _file(config, profile.step, profile.versions)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"schema": SCHEMA, **_plain(profile)}, indent=1), encoding="utf-8")
    os.replace(partial, path)
    return path


def step_of(content: Mapping[str, Any]) -> ProfiledStep:
    """A step as it was written. Raises: KeyError, TypeError, ValueError for what is none."""
    made = ProfiledStep(
        **{
            **content,
            "lora_targets": tuple(str(each) for each in content["lora_targets"]),
            "compute_capability": tuple(int(each) for each in content["compute_capability"]),
        }
    )
    if not (isinstance(made.batch, int) and isinstance(made.tokens, int) and isinstance(made.num_ranks, int)):
        raise ValueError("not a step")
    return made


def plain_step(step: ProfiledStep) -> dict[str, Any]:
    """A step as JSON holds it."""
    made = {name: getattr(step, name) for name in ProfiledStep.__slots__}
    return {**made, "lora_targets": list(step.lora_targets), "compute_capability": list(step.compute_capability)}


def _plain(profile: TrainingProfile) -> dict[str, Any]:
    return {
        "step": plain_step(profile.step),
        "architecture": profile.architecture,
        "parameters": profile.parameters,
        "trained_parameters": profile.trained_parameters,
        "versions": profile.versions,
        "phases": [
            {
                "name": phase.name,
                "peak_bytes": phase.peak_bytes,
                "after_bytes": phase.after_bytes,
                "reserved_bytes": phase.reserved_bytes,
                "held": [[each.category, each.name, each.size_bytes] for each in phase.held[:_MOST_HELD]],
            }
            for phase in profile.phases
        ],
        "notes": list(profile.notes),
    }


def _read(path: Path, step: ProfiledStep) -> TrainingProfile | None:
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA or content["step"] != plain_step(step):
            return None
        return TrainingProfile(
            step=step,
            architecture=_text(content["architecture"]),
            parameters=_size(content["parameters"]),
            trained_parameters=_size(content["trained_parameters"]),
            versions={_text(name): _text(value) for name, value in content["versions"].items()},
            phases=_phases(content["phases"]),
            notes=tuple(_text(each) for each in content["notes"][:16]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _phases(content: list[Any]) -> tuple[ProfiledPhase, ...]:
    made = tuple(
        ProfiledPhase(
            name=each["name"],
            peak_bytes=_size(each["peak_bytes"]),
            after_bytes=_size(each["after_bytes"]),
            reserved_bytes=_size(each["reserved_bytes"]),
            held=tuple(
                ProfiledHeld(category=_text(category), name=_text(name), size_bytes=_size(size))
                for category, name, size in each["held"][:_MOST_HELD]
            ),
        )
        for each in content
    )
    if tuple(each.name for each in made) != get_args(ProfiledPhaseName):
        raise ValueError("not the phases of a step")
    return made


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MOST_BYTES:
        raise ValueError("not a size")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("not a text")
    return value[:_LONGEST_TEXT]


def _key(config: Mapping[str, object], step: ProfiledStep) -> str:
    content = json.dumps([SCHEMA, config, plain_step(step)], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _file(config: Mapping[str, object], step: ProfiledStep, versions: Mapping[str, str]) -> Path:
    named = json.dumps({name: versions[name] for name in PACKAGES if name in versions}, sort_keys=True)
    return _folder() / f"{_key(config, step)}-{hashlib.sha256(named.encode()).hexdigest()[:12]}.json"


def _folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "memplan" / "training"
