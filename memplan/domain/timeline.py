"""What memory did while a model ran: phases, the curve between them, what was alive at each peak.

A timeline is measured (`cuda`, `cpu`) or replayed from a trace that ran on no device (`simulated`); reports and
comparisons read it and never care which. *Allocated* is what tensors hold, in the allocator's blocks; *reserved* is
what the allocator holds of the device; *inactive split* is the part of reserved that lies free in segments which a live
block keeps from being returned, and so the only part that is fragmentation.
"""

from __future__ import annotations

from typing import Literal

from memplan.records import dataclass, field

Device = Literal["cuda", "cpu", "simulated"]
# "run" is a whole program of which nobody said what it does, such as one that left a snapshot: it cannot be asked for.
Phase = Literal["load", "prefill", "decode", "generate", "forward", "backward", "optimizer", "capture", "run"]
Category = Literal["weights", "kv_cache", "activations", "gradients", "optimizer_state", "workspace", "unknown"]
PHASES: tuple[Phase, ...] = ("load", "prefill", "capture", "decode", "generate", "forward", "backward", "optimizer")
# Why a CUDA graph cannot hold a step: the host reads a value, or sends one from memory that is not pinned; a shape
# follows from values, or is another in the next step.
Obstacle = Literal["host-read", "host-copy", "data-shape", "growing-shape"]
CATEGORIES: tuple[Category, ...] = (
    "weights",
    "kv_cache",
    "activations",
    "gradients",
    "optimizer_state",
    "workspace",
    "unknown",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The allocator at one moment, in bytes. `allocated_bytes` counts blocks, `requested_bytes` what was asked for."""

    allocated_bytes: int
    reserved_bytes: int
    inactive_split_bytes: int = 0
    requested_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTensor:
    """One allocation that was alive at a peak.

    `module` is the dotted name of the module that ran when it was made (empty outside of one), `operator` the
    operator that made it, `where` the innermost line of code outside torch, as `path:line function`. `count` merges
    equal ones: `size_bytes` is of all of them together.
    """

    size_bytes: int
    category: Category
    module: str = ""
    operator: str = ""
    where: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleShare:
    """What was alive at the run's peak of one category, made by one operator in one module.

    Numbers in the names of modules are `*`, so that equal layers are one share; `count` modules are in it.
    """

    category: Category
    module: str
    operator: str
    size_bytes: int
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a phase computes and moves, summed over its operators.

    `moved_bytes` counts every operator's inputs and outputs once: what an ideal kernel reads and writes. `seconds` is
    the measured time, None where nothing ran.
    """

    flops: int
    moved_bytes: int
    seconds: float | None = None

    @property
    def intensity_flops_per_byte(self) -> float:
        """FLOPs for every byte moved; against a GPU's ridge point it says what binds."""
        return self.flops / self.moved_bytes if self.moved_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMemory:
    """One phase: the level before it, at its peak of allocated bytes, and after it.

    `peak_reserved_bytes` is the largest reserved in the phase, which may come later than the peak of allocated.
    `by_category` and `by_module` split the allocated bytes of the peak and sum to it; `by_module` is cut at the depth
    that a page shows. `iteration` counts repetitions of a phase from 0; `left_bytes` is what the phase made and did
    not free that is neither weights, cache, gradients nor optimizer state.
    """

    phase: Phase
    before: Level
    peak: Level
    after: Level
    peak_reserved_bytes: int
    by_category: dict[Category, int]
    by_module: dict[str, int] = field(default_factory=dict)
    largest: tuple[LiveTensor, ...] = ()
    work: Work | None = None
    work_by_module: dict[str, Work] = field(default_factory=dict)
    iteration: int = 0
    num_allocations: int = 0
    left_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One point of the curve. `step` counts allocations and frees from the start of the run."""

    step: int
    phase: Phase
    allocated_bytes: int
    reserved_bytes: int
    by_category: dict[Category, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """A phase that ran out of memory: a result, not a failure of the profile.

    The figures are those of PyTorch's message: `wanted_bytes` is the segment that was asked of the device,
    `free_bytes` what the device had left, `allocated_bytes` what tensors held and `reserved_bytes` what the allocator
    held at that moment.
    """

    phase: Phase
    wanted_bytes: int
    free_bytes: int
    capacity_bytes: int
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    tensor: LiveTensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureBreak:
    """One thing in a decoding step that a CUDA graph cannot hold, with the code that does it, `count` times a step."""

    obstacle: Obstacle
    operator: str
    module: str = ""
    where: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Whether a decoding step can be captured in a CUDA graph, and what the graph keeps of the device.

    `pool_bytes` is the graph's private pool, held as long as the graph is; `live_bytes` the part of it that tensors
    hold between replays. Both are None where nothing was captured.
    """

    breaks: tuple[CaptureBreak, ...] = ()
    pool_bytes: int | None = None
    live_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One diagnosis: what is the matter, the figures that show it, and the change that mends it.

    `saves_bytes` is what the mend returned when it was tried (replayed or computed again), None where it was not.
    """

    code: str
    title: str
    evidence: str
    mend: str
    saves_bytes: int | None = None
    severity: Literal["note", "warning", "error"] = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One term at the peak of a phase, measured beside estimated, in bytes; low and high are the estimate's 90 %."""

    phase: Phase
    term: str
    measured_bytes: int
    estimated_bytes: int
    low_bytes: int
    high_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """What a GPU computes and moves at most; work of less intensity than its ridge is bound by bandwidth."""

    flops_per_s: float
    moved_bytes_per_s: float

    @property
    def ridge_flops_per_byte(self) -> float:
        """The intensity at which both take the same time."""
        return self.flops_per_s / self.moved_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryTimeline:
    """One profile of one model (or of a script or a snapshot) on one rank.

    `settings` are those that took effect; `capacity_bytes` is None where no device limits the run; `outside_bytes` is
    what the process held of the device outside of the allocator (context, libraries), None where it was not read.
    `samples` are thinned to what a plot can show, never leaving out a phase's peak. `at_peak` is everything that was
    alive at the fullest moment; empty where no trace was kept. `roof` is the device's, None where it is not known.
    `capture` is told where a graph was asked for. `interrupted` says that the last phase was cut short.
    """

    model_name: str
    architecture: str
    device: Device
    device_name: str
    settings: dict[str, object]
    phases: tuple[PhaseMemory, ...]
    samples: tuple[Sample, ...] = ()
    at_peak: tuple[ModuleShare, ...] = ()
    rank: int = 0
    num_ranks: int = 1
    capacity_bytes: int | None = None
    outside_bytes: int | None = None
    out_of_memory: OutOfMemory | None = None
    capture: Capture | None = None
    interrupted: bool = False
    roof: Roof | None = None
    findings: tuple[Finding, ...] = ()
    compared: tuple[Compared, ...] = ()
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def peak(self) -> PhaseMemory:
        """The phase with the largest peak of allocated bytes."""
        return max(self.phases, key=lambda phase: phase.peak.allocated_bytes)
