"""The constants of training budgets that no source states, and the widths of their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from memplan.catalog.tables import load_constants
from memplan.domain.training import GATHERING, TrainingSpec
from memplan.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Sizes in the unit of their name; `intervals` are shares below and above what is predicted, by group."""

    host_base_gib: float
    outside_width_mib: float
    intervals: Mapping[str, tuple[float, float]]


@cache
def load_fitted() -> Fitted:
    """Read the constants."""
    sizes, intervals = load_constants("training")
    return Fitted(**sizes, intervals={name: (low, high) for name, (low, high) in intervals.items()})


def group_of(training: TrainingSpec) -> str:
    """The group of recorded runs whose errors say how far off an estimate may be."""
    layout = training.layout
    if layout.tensor * layout.pipeline * layout.expert > 1:
        return "others"
    what = "full" if training.method == "full" else "adapters"
    return f"{what}_{'gathered' if training.sharding in GATHERING else 'whole'}"
