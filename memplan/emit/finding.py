"""What a check says of a setup, and the setup computed again with other settings."""

from __future__ import annotations

import shlex
from math import floor
from typing import Literal

from memplan.domain.emission import EmitSubject
from memplan.domain.serving import ServingSettings
from memplan.engines.registry import load_engine
from memplan.errors import MemplanError
from memplan.records import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One complaint that a setup would end in. `reason` is one line with the numbers, `hint` what a person can do.

    `mended` has the settings that mend it, `refused` has none. `noted` is for what a file cannot change, such as the
    order in which servers start.
    """

    check: str
    action: Literal["mended", "refused", "noted"]
    reason: str
    hint: str = ""
    settings: ServingSettings | None = None


def mended(check: str, reason: str, settings: ServingSettings) -> Finding:
    """A finding that other settings mend."""
    return Finding(check=check, action="mended", reason=reason, settings=settings)


def refused(check: str, reason: str, hint: str) -> Finding:
    """A finding that only the user can mend."""
    return Finding(check=check, action="refused", reason=reason, hint=hint)


def noted(check: str, reason: str, hint: str = "") -> Finding:
    """A finding to be told."""
    return Finding(check=check, action="noted", reason=reason, hint=hint)


def pinned(subject: EmitSubject) -> ServingSettings:
    """The settings with the utilization that the budget used: an engine among several on a GPU has its part only."""
    utilization = setting(subject, "gpu_memory_utilization")
    if isinstance(utilization, float) and subject.settings.gpu_memory_utilization is None:
        return replace(subject.settings, gpu_memory_utilization=utilization)
    return subject.settings


def checked_again(subject: EmitSubject, settings: ServingSettings) -> EmitSubject:
    """The setup with these settings and the budget that they have. Raises: MemplanError for what is refused."""
    engine = load_engine(subject.engine)
    budget = engine.estimate(subject.spec, subject.gpu, settings, subject.version)
    budget = replace(
        budget,
        settings={**budget.settings, "concurrency": settings.workload.concurrency},
        weights_scheme=subject.budget.weights_scheme,
        price=subject.budget.price,
    )
    return replace(subject, settings=settings, budget=budget)


def setting(subject: EmitSubject, *names: str) -> object:
    """The value of the first of these engine options that the budget shows; None when it shows none."""
    return next(
        (subject.budget.settings[name] for name in names if subject.budget.settings.get(name) is not None), None
    )


def sequences(subject: EmitSubject) -> int | None:
    """How many sequences one replica takes into a step, under whatever name the engine has for it."""
    value = setting(subject, "max_num_seqs", "max_running_requests", "max_batch_size")
    return value if isinstance(value, int) else None


def step_size(subject: EmitSubject) -> int | None:
    """How many tokens one step takes."""
    value = setting(subject, "max_num_batched_tokens", "chunked_prefill_size", "max_num_tokens")
    return value if isinstance(value, int) and value > 0 else None


def replicas(subject: EmitSubject) -> int:
    """How many replicas share the requests."""
    return max(1, subject.settings.layout.data)


def per_replica(subject: EmitSubject) -> int:
    """How many of the asked requests one replica serves."""
    return -(-subject.settings.workload.concurrency // replicas(subject))


def holds(subject: EmitSubject, tokens: int) -> int | None:
    """How many requests of `tokens` tokens the cache of one replica has room for; None when nothing is cached."""
    workload = replace(subject.settings.workload, context_tokens=max(1, tokens), concurrency=1)
    try:
        budget = checked_again(subject, replace(pinned(subject), workload=workload)).budget
    except MemplanError:
        return None
    most = budget.kv.max_concurrency
    return None if most is None else floor(most / replicas(subject))


def engines_on_gpu(subject: EmitSubject) -> int:
    """How many engines like this one share each GPU, as the command says."""
    words = shlex.split(subject.command)
    for index, word in enumerate(words[:-1]):
        if word == "--sharing" and words[index + 1].isdigit():
            return int(words[index + 1])
    return 1
