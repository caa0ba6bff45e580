"""What the doctor says: what it was given, what happened, why, and what mends it.

A figure is in the unit that it names; sizes are bytes. Where a term has both, `budget` is what memplan's formulas say
of the settings that were read, and `measured` what the log, the traceback or the server itself said.
"""

from __future__ import annotations

from typing import Literal

from memplan.records import dataclass, field

Unit = Literal["bytes", "tokens", "count", "fraction", "text"]
Severity = Literal["error", "warning", "note", "fine"]
Risk = Literal["none", "low", "medium", "high"]
Basis = Literal["budget", "log", "rule"]
Kind = Literal[
    "engine log",
    "traceback",
    "kernel log",
    "snapshot",
    "serving config",
    "training config",
    "nvidia-smi",
    "metrics",
    "text",
    "unknown",
]
Value = int | float | str
GRAVITY: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2, "fine": 3}
"""The order in which diagnoses are told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One figure that was read. `where` says in which place: `line 12`, `/metrics`, `key max-model-len`."""

    term: str
    value: Value
    unit: Unit
    where: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """What was given: its kind, and where that can be told the engine and its release."""

    kind: Kind
    name: str
    engine: str | None = None
    version: str | None = None
    generation: str | None = None
    num_lines: int = 0
    size_bytes: int = 0
    signs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyLine:
    """One term of the working: what the budget gives for it beside what was measured; None where either is unknown."""

    term: str
    unit: Unit
    budget: float | None = None
    measured: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """One change, as it is typed for that engine and release.

    `effect_bytes` is the room that it makes on the fullest GPU. `basis` says how that was found: computed again by the
    budget, from the log's own figures, or not at all, by rule. `mends` is whether it is enough by itself, None when
    that cannot be told.
    """

    change: str
    risk: Risk
    basis: Basis
    effect_bytes: int | None = None
    mends: bool | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One thing that is the matter, or that nothing is. `cause` is a stable name, `sentence` says it with figures."""

    cause: str
    severity: Severity
    sentence: str
    because: str = ""
    evidence: tuple[Evidence, ...] = ()
    why: tuple[WhyLine, ...] = ()
    mends: tuple[Mend, ...] = ()
    is_certain: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """The whole answer: what was recognised, what is the matter (the gravest first), and what would tell more."""

    recognised: Recognised
    diagnoses: tuple[Diagnosis, ...]
    settings: dict[str, object] = field(default_factory=dict)
    budget_of: str = ""
    needs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> Diagnosis | None:
        """What the input is about, None when nothing was understood."""
        return self.diagnoses[0] if self.diagnoses else None
