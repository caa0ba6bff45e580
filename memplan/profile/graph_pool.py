"""What a captured graph keeps, read off the phase in which it was captured."""

from __future__ import annotations

from collections.abc import Iterable

from memplan.domain.timeline import Capture, PhaseMemory
from memplan.records import replace


def with_pool(capture: Capture | None, phases: Iterable[PhaseMemory]) -> Capture | None:
    """The capture with the size of its private pool, which begins empty and with nothing else cached."""
    phase = next((each for each in phases if each.phase == "capture"), None)
    if capture is None or phase is None:
        return capture
    pool_bytes = phase.after.reserved_bytes - phase.before.reserved_bytes
    live_bytes = phase.after.allocated_bytes - phase.before.allocated_bytes
    return replace(capture, pool_bytes=max(pool_bytes, 0), live_bytes=max(live_bytes, 0))
