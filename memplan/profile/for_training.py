"""Profiles of training steps for `memplan estimate --train`, made in a process of their own and remembered.

`python -m memplan.profile.for_training` reads what to run as one JSON object from stdin: `model`, `revision`,
`offline`, `trust_remote_code`, and `steps`. Every step is kept as soon as it is made. stdout gets one JSON object:
nothing in it where all went well, else `error`, `hint` and the `exit_code` that says of what kind the error is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

from memplan.domain.dtypes import DType
from memplan.domain.timeline import MemoryTimeline, PhaseMemory
from memplan.domain.training_profile import ProfiledHeld, ProfiledPhase, ProfiledStep, TrainingProfile
from memplan.engines.training.profile_cache import keep_profile, step_of
from memplan.errors import MemplanError
from memplan.profile.request import TRAINING, ProfileRequest

_NUMBER = re.compile(r"\b\d+\b")
_NAMED = 12  # of each phase; what is left is summed by category
_TYPES = {"float32": DType.F32, "bfloat16": DType.BF16, "float16": DType.F16}


def profile_step(asked: Mapping[str, Any], step: ProfiledStep) -> TrainingProfile:
    """Run a step on no device, the second of two, whose optimizer state is there from the beginning.

    Raises: as `profile_model`.
    """
    from memplan.profile.run import profile_model

    request = ProfileRequest(
        model=asked["model"],
        phases=TRAINING,
        batch=step.batch,
        prompt_tokens=step.tokens,
        output_tokens=step.tokens,
        resolution=step.resolution,
        images=step.images,
        dtype=_TYPES[step.dtype],
        attention=step.attention,  # type: ignore[arg-type]
        optimizer=step.optimizer,  # type: ignore[arg-type]
        checkpointing=step.checkpointing,
        lora_rank=step.lora_rank,
        lora_targets=step.lora_targets,
        sharing=step.sharing,
        num_ranks=step.num_ranks,
        mixed_precision=_TYPES[step.computed_in] if step.computed_in else None,
        compute_capability=step.compute_capability,
        warmup=1,
        revision=asked.get("revision"),
        offline=bool(asked.get("offline")),
        trust_remote_code=bool(asked.get("trust_remote_code")),
    )
    timeline, _ = profile_model(request)
    parameters, trained = _parameters(request)
    return TrainingProfile(
        step=step,
        architecture=timeline.architecture,
        parameters=parameters,
        trained_parameters=trained,
        versions=timeline.versions,
        phases=_phases(timeline),
        notes=tuple(timeline.warnings),
    )


def _parameters(request: ProfileRequest) -> tuple[int, int]:
    """Of the model without adapters, and of what is trained."""
    from memplan.profile.adapters import add_adapters
    from memplan.profile.subject import load_subject
    from memplan.records import replace

    model = load_subject(replace(request, sharing="none", num_ranks=1, mixed_precision=None), runs_as="cuda").model
    count = sum(each.numel() for each in model.parameters())
    if request.lora_rank is not None:
        add_adapters(model, request.lora_rank, request.lora_targets)
    return count, sum(each.numel() for each in model.parameters() if each.requires_grad)


def _phases(timeline: MemoryTimeline) -> tuple[ProfiledPhase, ...]:
    return tuple(
        ProfiledPhase(
            name=each.phase,  # type: ignore[arg-type]
            peak_bytes=each.peak.allocated_bytes,
            after_bytes=each.after.allocated_bytes,
            reserved_bytes=each.peak_reserved_bytes,
            held=_held(each),
        )
        for each in timeline.phases
    )


def _held(phase: PhaseMemory) -> tuple[ProfiledHeld, ...]:
    """The largest by the module that made them, layers that differ in their number together, and what is left."""
    if phase.phase == "load":  # what is read in is not called weights before it is there
        return (ProfiledHeld(category="weights", name="parameters", size_bytes=phase.peak.allocated_bytes),)
    sums: dict[tuple[str, str], int] = {}
    for each in phase.largest:
        name = _NUMBER.sub("*", each.module) or each.operator or "outside of modules"
        sums[each.category, name] = sums.get((each.category, name), 0) + each.size_bytes
    named = sorted(sums.items(), key=lambda item: -item[1])[:_NAMED]
    left = dict(phase.by_category)
    found = []
    for (category, name), size in named:
        size = min(size, left.get(category, 0))  # type: ignore[call-overload]
        left[category] = left.get(category, 0) - size  # type: ignore[index, call-overload]
        found.append(ProfiledHeld(category=category, name=name, size_bytes=size))
    found += [ProfiledHeld(category=name, name="others", size_bytes=size) for name, size in left.items() if size > 0]
    return tuple(each for each in found if each.size_bytes)


def main() -> int:
    """Make what stdin asks for."""
    from memplan.introspect.resolve import find_running_config

    asked = json.load(sys.stdin)
    answer: dict[str, object] = {}
    try:
        config, _ = find_running_config(
            asked["model"], revision=asked.get("revision"), offline=bool(asked.get("offline"))
        )
        for each in asked["steps"]:
            keep_profile(config, profile_step(asked, step_of(each)))
    except MemplanError as error:
        answer = {"error": str(error), "hint": error.hint, "exit_code": error.exit_code}
    except OSError as error:
        answer = {
            "error": f"the profile cannot be kept: {error.strerror}",
            "hint": "set XDG_CACHE_HOME",
            "exit_code": 2,
        }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
