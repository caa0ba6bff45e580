"""Memory of one machine beside its GPUs: processes, what is offloaded, and a checkpoint on its way to the disk."""

from __future__ import annotations

from memplan.budget.links import GPUS_PER_MACHINE
from memplan.domain.training import GATHERING, TrainingSpec
from memplan.domain.training_budget import HostLine
from memplan.units import GIB, format_count

_MOMENTS = {"adamw": 2, "paged-adamw": 2, "lion": 1, "muon": 1, "sgd": 1}
_STEP_BYTES = 4  # the host's optimizers step in FP32


def host_lines(training: TrainingSpec, trained: int, parameters: int, base_gib: float) -> tuple[HostLine, ...]:
    """What one machine needs; ranks beyond eight are on other machines.

    Source: DeepSpeed's ZeRO-Offload (offload_optimizer keeps FP32 weights, moments and gradients on the host), torch
    FSDP's CPUOffload (shards with their gradients and states), bitsandbytes' paged states (managed memory).
    """
    layout = training.layout
    ranks = min(layout.ranks, GPUS_PER_MACHINE)
    lines = [
        HostLine(name="processes", size_bytes=round(ranks * base_gib * GIB), formula=f"{ranks} x {base_gib:g} GiB")
    ]
    share = ranks / layout.ranks
    moments = _MOMENTS.get(training.optimizer, 2)
    if training.offload_optimizer:
        kept = (
            _STEP_BYTES * (moments + 2)
            if training.master_bytes
            else training.state_bytes * moments + training.grad_bytes
        )
        lines.append(
            HostLine(
                name="optimizer state",
                size_bytes=round(trained * kept * share),
                formula=f"{format_count(trained)} trained x {kept} B{_part(share)}",
            )
        )
    elif training.optimizer.startswith("paged"):
        width = 1 if training.optimizer.endswith("8bit") else training.state_bytes
        lines.append(
            HostLine(
                name="paged optimizer state, where the GPU is full",
                size_bytes=round(trained * 2 * width * share),
                formula=f"{format_count(trained)} trained x 2 x {width} B{_part(share)}",
            )
        )
    if training.offload_parameters:
        width = training.weight_bytes
        lines.append(
            HostLine(
                name="weights",
                size_bytes=round(parameters * width * share),
                formula=f"{format_count(parameters)} x {width} B{_part(share)}",
            )
        )
    if training.sharding in GATHERING and layout.shards > 1:
        width = training.weight_bytes
        lines.append(
            HostLine(
                name="whole checkpoint on rank 0, while it is saved",
                size_bytes=parameters * width,
                formula=f"{format_count(parameters)} x {width} B",
            )
        )
    return tuple(lines)


def _part(share: float) -> str:
    return f" x {share:g} on this machine" if share < 1 else ""
