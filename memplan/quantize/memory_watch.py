"""How much memory this process holds while it works, over time: what a limit is kept to, and what a report shows.

Counted are anonymous pages, what the process itself made. Pages of mapped files are not: the system takes those back
whenever something else needs the room. Torch is not known here.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

_EVERY_S = 0.05
_MOST_SAMPLES = 400
_STATUS = Path("/proc/self/status")


class MemoryWatch:
    """Samples the memory of this process from `with` to its end; `phase` is what is being done.

    `samples` are seconds since the start, the most bytes held since the sample before, and the phase. Elsewhere than
    on Linux there are none, and the peak is the largest resident size, files included.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[float, int, str]] = []
        self.peak_bytes = 0
        self.phase = ""
        self._start = time.monotonic()
        self._every_s = _EVERY_S
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._note(held_bytes())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._note(held_bytes())

    def _watch(self) -> None:
        most_bytes, due = 0, time.monotonic()
        while not self._over.wait(_EVERY_S):
            most_bytes = max(most_bytes, held_bytes())
            if time.monotonic() >= due:
                self._note(most_bytes)
                most_bytes, due = 0, time.monotonic() + self._every_s

    def _note(self, held: int) -> None:
        """Keep a sample; of too many, every two become one and fewer are taken from then on."""
        self.peak_bytes = max(self.peak_bytes, held)
        self.samples.append((round(time.monotonic() - self._start, 2), held, self.phase))
        if len(self.samples) > _MOST_SAMPLES:
            pairs = zip(self.samples[::2], self.samples[1::2], strict=False)
            self.samples = [max(pair, key=lambda sample: sample[1]) for pair in pairs]
            self._every_s *= 2


def held_bytes() -> int:
    """The anonymous memory of this process now; elsewhere than on Linux the largest resident size so far, or 0."""
    try:
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
