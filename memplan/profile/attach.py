"""A program of somebody's own as a profile: recorded from its first line or between two, on a GPU or on the CPU.

On a GPU PyTorch's allocator keeps the history; on the CPU the dispatch mode of `recorder` does. Torch is imported when
a recording begins.
"""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any, Literal

from memplan.domain.timeline import PHASES, MemoryTimeline
from memplan.errors import CorruptFile, MissingExtra, UsageError
from memplan.profile.at_peak import shares_at_peak
from memplan.profile.events import EventLog
from memplan.profile.findings import find
from memplan.profile.replay import replay
from memplan.records import replace

if TYPE_CHECKING:
    import torch

    from memplan.profile.device_memory import DeviceMemory
    from memplan.profile.program import Program

Where = Literal["auto", "cpu", "cuda"]
# A trace of this many events takes about a gigabyte together with what is made of it.
_MOST_EVENTS = 20_000_000


class Attached:
    """A recording of a program; `timeline` is there when it is over, None where nothing was allocated.

    `memory` is a device to watch in the place of this machine's.
    """

    def __init__(
        self, name: str, where: Where = "auto", *, memory: DeviceMemory | None = None, most_events: int = _MOST_EVENTS
    ) -> None:
        self.name = name
        self.timeline: MemoryTimeline | None = None
        self._where = where
        self._memory = memory
        self._most_events = most_events
        self._notes: list[str] = []
        self._program: Program | None = None
        self._finish: Any = None

    def __enter__(self) -> Attached:
        global _current
        if _current is not None:
            raise UsageError("a recording is running already", hint="name a phase within it: record('prefill')")
        (self._on_cuda if self._memory or _device(self._where) == "cuda" else self._on_cpu)()
        _current = self
        return self

    def __exit__(self, *caught: object) -> None:
        global _current
        _current = None
        self._finish()

    @property
    def has_begun(self) -> bool:
        """Whether anything is, or was, recorded."""
        return self._program is not None

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """A stretch of the program under a name; one that is not a phase's is told as part of the run."""
        assert self._program is not None
        return self._program.named(name if name in PHASES else "run")

    def watch(self, model: torch.nn.Module) -> None:
        """Learn a model before it runs: what it holds already are weights. One that runs is learnt by itself."""
        assert self._program is not None
        self._program.meet(model)

    def _on_cpu(self) -> None:
        from memplan.profile.program import Program
        from memplan.profile.recorder import Recorder
        from memplan.profile.work import WorkCounter

        recorder = Recorder("cpu", work=WorkCounter())

        def bound() -> None:
            if len(recorder.log.order) > self._most_events and not self._notes:
                recorder.stop_adding()
                self._notes.append(
                    f"recorded up to {self._most_events:,} allocations and frees; later ones are left out"
                )

        program = self._program = Program(recorder, on_phase=bound)
        program.__enter__()

        def finish() -> None:
            program.__exit__(None, None, None)
            counts = recorder.work.by_phase() if recorder.work is not None else {}
            replayed = replay(recorder.log, None, work=counts)
            self._tell(recorder.log, phases=replayed.phases, samples=replayed.samples, device="cpu")

        self._finish = finish

    def _on_cuda(self) -> None:
        from memplan.profile.device_memory import CudaMemory
        from memplan.profile.device_recorder import DeviceRecorder, counted
        from memplan.profile.program import Program

        device = self._memory or CudaMemory()
        device.start()
        recorder = DeviceRecorder(device)
        program = self._program = Program(recorder)
        program.__enter__()

        def finish() -> None:
            program.__exit__(None, None, None)
            try:
                outside_bytes, snapshot = device.outside_bytes(), recorder.snapshot()
            except CorruptFile:  # nothing was ever asked of the device
                return
            finally:
                gc.collect()
                device.stop()
            self._notes += snapshot.warnings
            self._tell(
                snapshot.log,
                phases=counted(snapshot.replay.phases, recorder.stretches),
                samples=snapshot.replay.samples,
                device="cuda",
                device_name=device.name,
                capacity_bytes=device.capacity_bytes,
                outside_bytes=outside_bytes,
                out_of_memory=snapshot.out_of_memory,
            )

        self._finish = finish

    def _tell(self, log: EventLog, **known: Any) -> None:
        """Make the timeline of what was recorded; phases in which nothing was made or freed are left out."""
        from memplan.profile.packages import installed_versions

        happened = {(mark.phase, mark.iteration) for mark, start, stop in log.spans() if stop > start}
        phases = tuple(each for each in known.pop("phases") if (each.phase, each.iteration) in happened)
        if not phases:
            return
        models = dict.fromkeys(self._program.models if self._program else ())
        timeline = MemoryTimeline(
            model_name=self.name,
            architecture=", ".join(models),
            phases=phases,
            settings={},
            warnings=tuple(self._notes),
            versions=installed_versions(),
            **{"device_name": "", **known},
        )
        shares = shares_at_peak(log, (phase.phase for phase in phases))
        timeline = replace(timeline, at_peak=shares)
        self.timeline = replace(timeline, findings=find(timeline, log, None))


_current: Attached | None = None


def current() -> Attached | None:
    """The recording that is running in this process."""
    return _current


def _device(where: Where) -> Where:
    from memplan.profile.packages import require_packages

    require_packages(("torch",))
    import torch

    if where == "cuda" and not torch.cuda.is_available():
        raise MissingExtra(f"no GPU that torch {torch.__version__} can use", hint="watch the CPU: --device cpu")
    if where != "auto":
        return where
    return "cuda" if torch.cuda.is_available() else "cpu"
