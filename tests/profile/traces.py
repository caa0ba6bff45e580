"""Traces that hypothesis draws: allocations of two streams, frees, phases, captures and emptied caches."""

from __future__ import annotations

from hypothesis import strategies as st

from memplan.domain.timeline import Category
from memplan.profile.events import EventLog, Label

MIB = 1 << 20
CATEGORY = st.sampled_from(["weights", "activations", "kv_cache", None])


@st.composite
def traces(draw: st.DrawFn, *, capture: bool = True, empties: bool = True, streams: bool = True) -> EventLog:
    """A trace of up to 60 steps; about half of them have events before their first phase."""
    log, live = EventLog(), []
    if draw(st.booleans()):
        log.begin("load")
    for _ in range(draw(st.integers(0, 60))):
        what = draw(st.integers(0, 9))
        if what < 5:
            category: Category | None = draw(CATEGORY)
            label = Label(module=f"m.{draw(st.integers(0, 3))}", operator="aten.mm", where="model.py:3 forward")
            live.append(log.allocate(draw(st.integers(1, 90 * MIB)), label, category, draw(st.integers(0, 1))))
            if what == 0 and streams:
                log.used_until(live[-1], len(log.order) + draw(st.integers(1, 9)))
        elif what < 8 and live:
            log.free(live.pop(draw(st.integers(0, len(live) - 1))))
        elif what == 8:
            log.begin(draw(st.sampled_from(["load", "decode", "capture"] if capture else ["load", "decode"])))
        elif empties:
            log.empty_cache()
    return log
