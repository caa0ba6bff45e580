"""What is known beside a recorded profile: the device, what was alive at the peak, the estimate, what is the matter."""

from __future__ import annotations

from memplan.cli.profile_request import AskedProfiles
from memplan.domain.gpu import GpuSpec
from memplan.domain.timeline import MemoryTimeline, Roof
from memplan.errors import UsageError
from memplan.profile.events import EventLog
from memplan.profile.request import ProfileRequest
from memplan.records import replace
from memplan.units import format_gib


def completed(
    timeline: MemoryTimeline, log: EventLog | None, request: ProfileRequest, asked: AskedProfiles
) -> MemoryTimeline:
    """Add to what was recorded its device, what was alive at the peak, the estimate and the findings."""
    from memplan.budget.caching_allocator.settings import parse_settings
    from memplan.cli.profile_estimate import compared
    from memplan.profile.at_peak import shares_at_peak
    from memplan.profile.findings import find
    from memplan.profile.limits import on_device

    settings = parse_settings(request.allocator)
    if asked.gpu is not None and request.device == "simulated":
        timeline = replace(timeline, device_name=asked.gpu.name, roof=roof_of(asked.gpu, timeline))
        if log is not None and request.capacity_bytes is not None:
            outside = context_bytes(asked.gpu) + communication_bytes(asked.gpu, request.num_ranks)
            timeline = on_device(timeline, log, settings, capacity_bytes=request.capacity_bytes, outside_bytes=outside)
            timeline = replace(timeline, warnings=(*timeline.warnings, *_outside_notes(asked.gpu, request)))
    elif request.device == "simulated":
        timeline = replace(timeline, device_name="")
    elif request.device == "cuda":
        timeline = replace(timeline, roof=_roof_of_local(timeline, asked.gpu))
    if log is not None and not timeline.at_peak:
        timeline = replace(timeline, at_peak=shares_at_peak(log, (phase.phase for phase in timeline.phases)))
    if asked.spec is not None and request.sharing == "none" and request.execution == "eager":
        timeline = replace(timeline, compared=compared(timeline, asked.spec, asked.gpu))
    return replace(timeline, findings=find(timeline, log, None if request.device == "cpu" else settings))


def context_bytes(gpu: GpuSpec) -> int:
    """What a process holds of a GPU before its first tensor, as the estimate has it."""
    from memplan.engines.transformers.fitted import context_bytes as context
    from memplan.engines.transformers.fitted import load_fitted

    return context(gpu, load_fitted())


def communication_bytes(gpu: GpuSpec, ranks: int) -> int:
    """What NCCL holds of a GPU beside torch, as the estimate for vLLM has it; nothing for one rank alone."""
    from memplan.engines.vllm.fitted import load_fitted
    from memplan.engines.vllm.overheads import group_bytes

    return group_bytes(gpu, ranks, load_fitted()) if ranks > 1 else 0


def _outside_notes(gpu: GpuSpec, request: ProfileRequest) -> tuple[str, ...]:
    """What is counted beside torch because there are several ranks."""
    size_bytes = communication_bytes(gpu, request.num_ranks)
    return (f"outside of torch, {format_gib(size_bytes)} are counted for NCCL",) if size_bytes else ()


def _roof_of_local(timeline: MemoryTimeline, named: GpuSpec | None) -> Roof | None:
    """The roof of the GPU that a profile was measured on, if the catalogue has it."""
    from memplan.catalog.gpus import find_gpu

    try:
        return roof_of(named or find_gpu(timeline.device_name), timeline)
    except UsageError:
        return None


def roof_of(gpu: GpuSpec, timeline: MemoryTimeline) -> Roof | None:
    """What a GPU computes in the type of a profile, and moves; None where the catalogue does not know."""
    kind = {"float16": "fp16", "bfloat16": "bf16"}.get(str(timeline.settings.get("dtype")), "fp16")
    flops = (gpu.flops_per_s or {}).get(kind)
    if not flops or not gpu.bandwidth_bytes_per_s:
        return None
    return Roof(flops_per_s=float(flops), moved_bytes_per_s=float(gpu.bandwidth_bytes_per_s))
