"""Profiles: what memory really does, on a GPU, on the CPU, or replayed with no GPU at all.

`memplan.profile.record` and `memplan.profile.TrainerProfile` are for programs of one's own; nothing else is imported
before it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memplan.cli.attached import record
    from memplan.profile.trainer import TrainerProfile

__all__ = ["TrainerProfile", "record"]


def __getattr__(name: str) -> object:
    if name == "record":
        from memplan.cli.attached import record

        return record
    if name == "TrainerProfile":
        from memplan.profile.trainer import TrainerProfile

        return TrainerProfile
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
