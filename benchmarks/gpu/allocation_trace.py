"""What was alive when memory peaked, from the caching allocator's own history.

The history is the list that torch keeps while `torch.cuda.memory._record_memory_history` is on: one entry per
allocation or release, with its address, its size in bytes and the Python frames that asked for it. Pure functions; they
know nothing of torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Entry = Mapping[str, Any]
# Frames of these files only pass a call on; the frame that matters is the first of another file.
_PASSING = ("torch/_ops", "torch/nn/modules/module", "torch/_dynamo", "torch/_inductor/utils", "contextlib")


def alive_at_peak(entries: Iterable[Entry]) -> tuple[int, list[Entry]]:
    """Return the most bytes that were alive at once, counted from the history's start, and the entries alive then.

    Releases of what was allocated before the history began lower the level, as they did in reality.
    """
    level = peak = 0
    alive: dict[int, Entry] = {}
    at_peak: list[Entry] = []
    for entry in entries:
        if entry["action"] == "alloc":
            alive[entry["addr"]] = entry
            level += entry["size"]
            if level > peak:
                peak, at_peak = level, list(alive.values())
        elif entry["action"] == "free_completed":
            alive.pop(entry["addr"], None)
            level -= entry["size"]
    return peak, at_peak


def by_place(entries: Iterable[Entry], most: int = 16) -> list[dict[str, Any]]:
    """Sum entries by the line that asked for them: the `most` largest sums, in bytes, with how many there were."""
    total_bytes: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for entry in entries:
        place = _place(entry.get("frames") or ())
        total_bytes[place] += entry["size"]
        count[place] += 1
    return [{"place": place, "bytes": size, "count": count[place]} for place, size in total_bytes.most_common(most)]


def _place(frames: Iterable[Mapping[str, Any]]) -> str:
    """The innermost Python frame that is not only passing a call on, as `package/file.py:line function`."""
    for frame in frames:
        file = str(frame.get("filename", ""))
        if file.endswith(".py") and not any(part in file for part in _PASSING):
            return f"{_short(file)}:{frame.get('line')} {frame.get('name')}"
    return "unknown"


def _short(file: str) -> str:
    return file.rpartition("site-packages/")[2] if "site-packages/" in file else "/".join(file.split("/")[-2:])
