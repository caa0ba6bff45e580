"""What a profile says, in words and rows that every format shares. Nothing here knows how a page looks."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.timeline import (
    CATEGORIES,
    Category,
    Compared,
    Finding,
    LiveTensor,
    MemoryTimeline,
    OutOfMemory,
    PhaseMemory,
    Roof,
    Work,
)
from memplan.records import replace
from memplan.units import format_gib

CATEGORY_NAMES: dict[Category, str] = {
    "weights": "weights",
    "kv_cache": "KV cache",
    "activations": "activations",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "workspace": "workspace",
    "unknown": "unknown",
}
SHARING_NAMES = {"ddp": "DDP", "fsdp": "FSDP2", "tp": "tensor parallel"}
PHASE_COLUMNS = ("phase", "before", "peak", "after", "reserved", "fragmented", "left behind")
_MOST_LARGEST = 10
LARGEST_COLUMNS = ("size", "tensor", "for", "made by", "where")
WORK_COLUMNS = ("phase", "computes", "moves", "FLOPs a byte", "bound by", "takes", "reaches")
COMPARED_COLUMNS = ("term", "profiled", "estimated", "90 % interval", "difference")
LEGEND = (
    "before, peak, after: what tensors hold; reserved: the most that the allocator held of the device; fragmented: the"
    " part of it that lay free at the peak and could not be returned; left behind: made in the phase, not freed, and"
    " no state"
)
_EXECUTIONS = {"compiled": "compiled", "graph": "captured in a graph"}
_PLACES = {"cuda": "measured on", "cpu": "measured on", "simulated": "simulated"}


def title(timeline: MemoryTimeline) -> str:
    """The model and its architecture."""
    kind = timeline.architecture
    return f"{timeline.model_name}, {kind}" if kind and kind != timeline.model_name else timeline.model_name


def where(timeline: MemoryTimeline, *, with_workload: bool = True) -> str:
    """Device, size, and the settings that shape a profile, unless they are told elsewhere."""
    room = room_bytes(timeline)
    size = f" ({format_gib(room)} for torch)" if room is not None else ""
    device = timeline.device_name or (
        "on a device without limit" if timeline.device == "simulated" else timeline.device
    )
    # Several ranks are told apart where their workloads are.
    ranks = ", ".join(_rank(timeline)) if with_workload else ""
    libraries = ", ".join(f"{name} {number}" for name, number in timeline.versions.items())
    workload = _workload(timeline) if with_workload else []
    parts = [f"{_PLACES[timeline.device]} {device}{size}", ranks, *workload, libraries]
    return ", ".join(part for part in parts if part)


def _workload(timeline: MemoryTimeline) -> list[str]:
    """The settings that a reader looks for first, in words."""
    settings = timeline.settings
    writes = any(phase.phase in ("decode", "generate") for phase in timeline.phases)
    found = []
    if dtype := settings.get("dtype"):
        narrow = settings.get("mixed_precision")
        found.append(f"{dtype} computed in {getattr(narrow, 'value', narrow)}" if narrow else str(dtype))
    batch, prompt, output = (settings.get(name) for name in ("batch", "prompt_tokens", "output_tokens"))
    if isinstance(batch, int) and isinstance(prompt, int):
        tokens = f"{prompt:,} + {output:,} tokens" if isinstance(output, int) and writes else f"{prompt:,} tokens"
        found.append(f"{batch:,} x {tokens}")
    if attention := settings.get("attention"):
        found.append(f"attention {attention}")
    if (execution := settings.get("execution", "eager")) != "eager":
        found.append(_EXECUTIONS.get(str(execution), str(execution)))
    return found


def _rank(timeline: MemoryTimeline) -> list[str]:
    """Which of several processes this is, and how they share the model."""
    if timeline.num_ranks < 2:
        return []
    how = SHARING_NAMES.get(str(timeline.settings.get("sharing")), "")
    return [f"{how + ', ' if how else ''}rank {timeline.rank} of {timeline.num_ranks}"]


def label(timeline: MemoryTimeline) -> str:
    """What tells this profile from others of a sweep."""
    return ", ".join(parts_of_label(timeline)) or timeline.model_name


def parts_of_label(timeline: MemoryTimeline) -> list[str]:
    """The same, in parts."""
    return [*_workload(timeline), *_rank(timeline)]


def word(timeline: MemoryTimeline) -> str:
    """The word that a page begins with."""
    return "OUT OF MEMORY" if timeline.out_of_memory else "PEAK"


def sentence(timeline: MemoryTimeline) -> str:
    """The answer as a sentence that needs nothing around it but its word."""
    peak = timeline.peak
    reached = (
        f"{format_gib(peak.peak.allocated_bytes)} allocated in {peak.phase}, "
        f"{format_gib(reserved_bytes(timeline))} reserved."
    )
    if timeline.out_of_memory:
        return f"{out_of_memory(timeline.out_of_memory)} Without that limit: {reached}"
    room = room_bytes(timeline)
    if room is None:
        return reached
    return f"{reached[:-1]}, {format_gib(room - reserved_bytes(timeline))} left of {format_gib(room)}."


def reserved_bytes(timeline: MemoryTimeline) -> int:
    """The most that the allocator held of the device in any phase."""
    return max(phase.peak_reserved_bytes for phase in timeline.phases)


def out_of_memory(found: OutOfMemory) -> str:
    """What a phase wanted and did not get."""
    what = f" for {tensor(found.tensor)}" if found.tensor else ""
    who = f" in {found.tensor.module}" if found.tensor and found.tensor.module else ""
    return (
        f"{found.phase} wants {format_gib(found.wanted_bytes)}{what}{who}, {format_gib(max(0, found.free_bytes))} of "
        f"{format_gib(found.capacity_bytes)} are free."
    )


def merged(timeline: MemoryTimeline) -> list[tuple[PhaseMemory, int]]:
    """Every phase once, with how often it ran: the fullest of its repetitions, from before the first to after the
    last. What it left behind is that of all of them, its work that of the last.
    """
    by_phase: dict[str, list[PhaseMemory]] = {}
    for phase in timeline.phases:
        by_phase.setdefault(phase.phase, []).append(phase)
    return [
        (
            replace(
                max(runs, key=lambda run: run.peak.allocated_bytes),
                before=runs[0].before,
                after=runs[-1].after,
                peak_reserved_bytes=max(run.peak_reserved_bytes for run in runs),
                left_bytes=sum(run.left_bytes for run in runs),
                work=runs[-1].work,
                work_by_module=runs[-1].work_by_module,
            ),
            len(runs),
        )
        for runs in by_phase.values()
    ]


def phase_rows(timeline: MemoryTimeline) -> list[list[str]]:
    """One row per phase, in the columns of PHASE_COLUMNS. What a forward pass keeps for the backward is not left."""
    trains = any(phase.phase == "backward" for phase in timeline.phases)
    return [
        [
            _times(phase, count),
            format_gib(phase.before.allocated_bytes),
            format_gib(phase.peak.allocated_bytes),
            format_gib(phase.after.allocated_bytes),
            format_gib(phase.peak_reserved_bytes),
            _unless_none(phase.peak.inactive_split_bytes),
            _unless_none(0 if phase.phase == "forward" and trains else phase.left_bytes),
        ]
        for phase, count in merged(timeline)
    ]


def _unless_none(size_bytes: int) -> str:
    return format_gib(size_bytes) if size_bytes else "-"


def _times(phase: PhaseMemory, count: int) -> str:
    return f"{phase.phase} x {count:,}" if count > 1 else phase.phase


def categories(timeline: MemoryTimeline) -> list[Category]:
    """The categories that hold anything at any peak, in their order."""
    return [name for name in CATEGORIES if any(phase.by_category.get(name) for phase in timeline.phases)]


def category_rows(timeline: MemoryTimeline) -> list[list[str]]:
    """One row per phase: its name, then the bytes of each of `categories` at the peak."""
    shown = categories(timeline)
    return [
        [phase.phase, *(_unless_none(phase.by_category.get(name, 0)) for name in shown)]
        for phase, _ in merged(timeline)
    ]


def tensor(found: LiveTensor) -> str:
    """A tensor, or several equal ones: `32 x bfloat16 [1, 8, 2048, 128]`."""
    shape = f"[{', '.join(str(side) for side in found.shape)}]" if found.shape else ""
    kind = " ".join(part for part in (found.dtype, shape) if part) or found.operator or "a block"
    return f"{found.count:,} x {kind}" if found.count > 1 else kind


def largest_rows(phase: PhaseMemory) -> list[list[str]]:
    """The largest of what was alive at a phase's peak, in the columns of LARGEST_COLUMNS; of all weights together
    where there is anything else.
    """
    others = [found for found in phase.largest if found.category != "weights"]
    weights = phase.by_category.get("weights", 0)
    first = [[format_gib(weights), "all of them", CATEGORY_NAMES["weights"], "", ""]] if others and weights else []
    return first + [
        [
            format_gib(found.size_bytes),
            tensor(found),
            CATEGORY_NAMES[found.category],
            " ".join(part for part in (found.operator, f"in {found.module}" if found.module else "") if part),
            found.where,
        ]
        for found in (others or phase.largest)[:_MOST_LARGEST]
    ]


def work_rows(timeline: MemoryTimeline) -> list[list[str]]:
    """What every phase computes and moves, in the columns of WORK_COLUMNS; nothing where it was not counted."""
    return [
        [phase.phase, *_work(phase.work, timeline.roof)]
        for phase, _ in merged(timeline)
        if phase.work is not None and (phase.work.flops or phase.work.moved_bytes)
    ]


def module_work_rows(phase: PhaseMemory, roof: Roof | None, *, most: int = 12) -> list[list[str]]:
    """The modules of a phase that move most, in the columns of WORK_COLUMNS."""
    ordered = sorted(phase.work_by_module.items(), key=lambda pair: -pair[1].moved_bytes)
    return [[name or "outside of modules", *_work(work, roof)] for name, work in ordered[:most]]


def _work(work: Work, roof: Roof | None) -> list[str]:
    return [
        flops(work.flops),
        format_gib(work.moved_bytes),
        f"{work.intensity_flops_per_byte:,.1f}",
        bound(work, roof) or "-",
        seconds(work.seconds) if work.seconds else at_best(work, roof),
        reached(work),
    ]


def bound(work: Work, roof: Roof | None) -> str:
    """What limits a phase on its device; nothing where the device's rates are not known."""
    if roof is None or not work.moved_bytes:
        return ""
    return "bandwidth" if work.intensity_flops_per_byte < roof.ridge_flops_per_byte else "compute"


def at_best(work: Work, roof: Roof | None) -> str:
    """The time that the device's rates allow, marked as a bound."""
    if roof is None:
        return "-"
    return f"> {seconds(max(work.flops / roof.flops_per_s, work.moved_bytes / roof.moved_bytes_per_s))}"


def reached(work: Work) -> str:
    """The rates that a measured phase reached."""
    if not work.seconds:
        return "-"
    return f"{work.moved_bytes / work.seconds / 1e9:,.0f} GB/s, {work.flops / work.seconds / 1e12:,.1f} TFLOP/s"


def ridge(roof: Roof) -> str:
    """A device's rates and where they meet."""
    return (
        f"the device computes {roof.flops_per_s / 1e12:,.0f} TFLOP/s and moves {roof.moved_bytes_per_s / 1e9:,.0f} GB/s"
        f" at most: below {roof.ridge_flops_per_byte:,.0f} FLOPs a byte, bandwidth binds"
    )


def flops(number: int) -> str:
    """Floating-point operations as people say them."""
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e6:,.1f} MFLOP"


def seconds(time_s: float) -> str:
    """A time in the unit that it is read in."""
    if time_s >= 1:
        return f"{time_s:,.2f} s"
    return f"{time_s * 1e3:,.2f} ms" if time_s >= 1e-3 else f"{time_s * 1e6:,.1f} us"


def compared_rows(timeline: MemoryTimeline) -> list[list[str]]:
    """Every term, profiled beside estimated, in the columns of COMPARED_COLUMNS."""
    return [
        [
            f"{one.phase}: {one.term}",
            format_gib(one.measured_bytes),
            format_gib(one.estimated_bytes),
            f"{format_gib(one.low_bytes)} .. {format_gib(one.high_bytes)}",
            f"{difference(one)}{'' if is_inside(one) else ', outside'}",
        ]
        for one in timeline.compared
    ]


def filled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that say nothing in any row."""
    kept = [number for number in range(len(head)) if any(row[number] != "-" for row in rows)]
    return [head[number] for number in kept], [[row[number] for number in kept] for row in rows]


def all_warnings(timelines: Sequence[MemoryTimeline]) -> list[str]:
    """The warnings of all profiles, each once."""
    return list(dict.fromkeys(warning for timeline in timelines for warning in timeline.warnings))


def room_bytes(timeline: MemoryTimeline) -> int | None:
    """What torch can have of the device: all of it but what is held outside of the allocator."""
    if timeline.capacity_bytes is None:
        return None
    return max(0, timeline.capacity_bytes - (timeline.outside_bytes or 0))


def difference(one: Compared) -> str:
    """The estimate's signed error, as a share of what was measured."""
    if not one.measured_bytes:
        return "none profiled" if one.estimated_bytes else "+0.0 %"
    ratio = one.estimated_bytes / one.measured_bytes
    return f"{100 * (ratio - 1):+.1f} %" if ratio < 10 else f"{ratio:,.0f} times"


def is_inside(one: Compared) -> bool:
    """Whether the measured size lies in the estimate's interval."""
    return one.low_bytes <= one.measured_bytes <= one.high_bytes


def finding_lines(findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    """Every diagnosis as its title with its gravity, its evidence, and its mend with what that returned."""
    return [(f"{one.severity}: {one.title}", one.evidence, one.mend + mended(one.saves_bytes)) for one in findings]


def mended(saves_bytes: int | None) -> str:
    """What a mend returned when it was tried."""
    return f" (tried: {format_gib(saves_bytes)} less)" if saves_bytes else ""


def shown_settings(timeline: MemoryTimeline) -> list[tuple[str, str]]:
    """Every setting that took effect, as name and value."""
    from memplan.report.words import setting

    return [(name, setting(value)) for name, value in timeline.settings.items()]


def matrix(timelines: Sequence[MemoryTimeline]) -> list[list[str]]:
    """Return a head and one row per profile: what tells it from the others, and its peaks by phase."""
    phases = [phase.phase for phase, _ in merged(timelines[0])]
    head = ["profile", *(f"{phase} peak" for phase in phases), "reserved", "left"]
    rows = []
    for timeline in timelines:
        peaks = {phase.phase: phase.peak.allocated_bytes for phase, _ in merged(timeline)}
        room = room_bytes(timeline)
        left = "-" if room is None else format_gib(room - reserved_bytes(timeline))
        rows.append(
            [
                label(timeline),
                *(format_gib(peaks[phase]) if phase in peaks else "-" for phase in phases),
                format_gib(reserved_bytes(timeline)),
                "out of memory" if timeline.out_of_memory else left,
            ]
        )
    return [head, *rows]
