"""Whether a decoding step could be captured in a CUDA graph, and what mends it where it could not."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.domain.timeline import CaptureBreak, Finding, MemoryTimeline, Obstacle

_MENDS: dict[Obstacle, str] = {
    "growing-shape": 'cache_implementation="static" (--cache static), and a mask as long as the cache',
    "data-shape": "a form of fixed size: torch.where in the place of a mask as index, all experts in the place of those"
    " that are hit",
    "host-read": "keep the value on the device: no .item(), .tolist(), .cpu() and no `if` on a tensor in the step",
    "host-copy": "make constants once, before the step, or on the device itself (torch.full, torch.arange)",
}
_ORDER: tuple[Obstacle, ...] = ("growing-shape", "data-shape", "host-read", "host-copy")


def capture_breaks(timeline: MemoryTimeline) -> Iterator[Finding]:
    """One finding for a step that a graph cannot hold, with the code that breaks it."""
    if timeline.capture is None or not timeline.capture.breaks:
        return
    breaks = timeline.capture.breaks
    kinds = [kind for kind in _ORDER if any(each.obstacle == kind for each in breaks)]
    yield Finding(
        code="capture",
        title="a decoding step cannot be captured in a CUDA graph",
        evidence=_said(breaks[0]) + (f"; obstacles in all: {len(breaks)}" if breaks[1:] else ""),
        mend="; ".join(_MENDS[kind] for kind in kinds),
        severity="warning",
    )


def _said(each: CaptureBreak) -> str:
    what = {
        "growing-shape": "has another shape in the next step",
        "data-shape": "makes a shape of values",
        "host-read": "gives a value to the host",
        "host-copy": "takes a value from the host",
    }[each.obstacle]
    where = f" at {each.where}" if each.where else ""
    times = f" ({each.count:,} times a step)" if each.count > 1 else ""
    return f"{each.operator} in {each.module or 'no module'}{where} {what}{times}"
