"""What people's deployments fail of, checked before a file is written: fifteen complaints, each refused or mended.

A check looks at a setup and says nothing, or a Finding. A finding with other settings mends: the budget is computed
again with them, so that what is written is what was checked. A mend that would make the asked requests not fit is no
mend: the setup is refused with the reason.
Source: the issues that each check of plan_checks.py and memory_checks.py names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from memplan.domain.emission import EmitSubject
from memplan.emit.finding import Finding, checked_again
from memplan.errors import MemplanError, UsageError
from memplan.records import dataclass, replace

Check = Callable[[EmitSubject], Finding | None]

# The order matters: what the hardware allows first, then what the cache holds, then what is admitted into it.
CHECKS: Mapping[str, str] = {
    "release": "memplan.emit.plan_checks:release",
    "shards": "memplan.emit.plan_checks:shards",
    "unified-memory": "memplan.emit.memory_checks:unified_memory",
    "free-memory": "memplan.emit.memory_checks:free_memory",
    "graph-capture": "memplan.emit.memory_checks:graph_capture",
    "media-profile": "memplan.emit.memory_checks:media_profile",
    "logprobs": "memplan.emit.memory_checks:logprobs",
    "context": "memplan.emit.plan_checks:context",
    "spare-block": "memplan.emit.plan_checks:spare_block",
    "sampler-warm-up": "memplan.emit.memory_checks:sampler_warm_up",
    "state-blocks": "memplan.emit.plan_checks:state_blocks",
    "preemption": "memplan.emit.plan_checks:preemption",
    "step-tokens": "memplan.emit.plan_checks:step_tokens",
    "shared-gpu": "memplan.emit.memory_checks:shared_gpu",
}
# The fifteenth, shared memory and how options reach the engine, is about files: memplan.emit.file_checks.
_MOST_ROUNDS = 4
_RANK = {"fits": 0, "tight": 1, "does_not_fit": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A setup after all checks: mended where that was needed, and everything that was found."""

    subject: EmitSubject
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.action == "refused")


def check_setup(subject: EmitSubject) -> Checked:
    """Run every check, each on the setup as the ones before it left it, until nothing is left to mend: what one mends
    can make room for the mend of another.
    """
    wrong = _load("release")(subject)
    if wrong is not None:  # whatever is computed again would be for another release
        return Checked(subject=subject, findings=(wrong,))
    done: list[Finding] = []
    left: list[Finding] = []
    for _ in range(_MOST_ROUNDS):
        left, is_mended = [], False
        for name in CHECKS:
            found = _load(name)(subject)
            if found is None:
                continue
            if found.settings is not None:
                subject, found = _mended(subject, found)
            if found.settings is not None:
                done.append(found)
                is_mended = True
            else:
                left.append(found)
        if not is_mended:
            break
    return Checked(subject=subject, findings=(*done, *left))


def settled(subject: EmitSubject) -> EmitSubject:
    """Return the setup with everything mended; its `changes` say what.

    Raises: UsageError for what no change of ours mends.
    """
    checked = check_setup(subject)
    for finding in checked.refused:
        raise UsageError(finding.reason, hint=finding.hint)
    return checked.subject


def _load(name: str) -> Check:
    module, attribute = CHECKS[name].split(":")
    check: Check = getattr(importlib.import_module(module), attribute)
    return check


def _mended(subject: EmitSubject, found: Finding) -> tuple[EmitSubject, Finding]:
    """The setup with the settings of a finding; unchanged, and the finding a refusal, when they would not do."""
    assert found.settings is not None
    try:
        mended = checked_again(subject, found.settings)
    except MemplanError as error:
        return subject, replace(found, action="refused", settings=None, reason=f"{found.reason}; {error.message}")
    if _RANK[mended.budget.verdict] > max(1, _RANK[subject.budget.verdict]):
        reason = f"{found.reason}; mended, the asked requests no longer fit: {'; '.join(mended.budget.reasons)}"
        return subject, replace(found, action="refused", settings=None, reason=reason)
    return replace(mended, changes=(*subject.changes, found.reason)), found
