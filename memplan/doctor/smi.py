"""nvidia-smi's table: how full each GPU is, and who holds it."""

from __future__ import annotations

from memplan.doctor.facts import Facts
from memplan.doctor.telling import size
from memplan.domain.diagnosis import Diagnosis, Evidence, Mend

_FULL = 0.9
_BUSY_BYTES = 1 << 30


def smi_diagnoses(facts: Facts) -> list[Diagnosis]:
    """Return one diagnosis of all GPUs: whose processes hold how much, and what is left."""
    gpus = facts.scanned.gpus
    if not gpus:
        return []
    figures = [(gpu.number("used") or 0, gpu.number("total") or 0) for gpu in gpus]
    processes = facts.scanned.smi_processes
    named = sum(each.number("used") or 0 for each in processes)
    fullest = max(range(len(figures)), key=lambda index: figures[index][0] / (figures[index][1] or 1))
    used, total = figures[fullest]
    hidden = sum(held for held, _ in figures) - named
    largest = max(processes, key=lambda each: each.number("used") or 0, default=None)
    whose = ""
    if largest is not None:
        whose = f"; the largest process, {largest.number('pid') or 0:.0f}, has {size(largest.number('used'))}"
    elif used > _BUSY_BYTES:
        whose = "; no process is listed that holds it: it runs in another container or under another user"
    share = used / total if total else 0.0
    free = total - used
    sentence = f"GPU {fullest} is the fullest: {size(used)} of {size(total)} are in use, {size(free)} are free{whose}"
    mends: tuple[Mend, ...] = ()
    if used > _BUSY_BYTES:
        usable = max(0.0, free / total - 0.02) if total else 0.0
        mends = (
            Mend(
                change="end the processes that are not needed",
                risk="none",
                basis="log",
                effect_bytes=int(used),
                note="sudo fuser -v /dev/nvidia* lists those that nvidia-smi does not" if hidden > _BUSY_BYTES else "",
            ),
            Mend(
                change=f"--gpu-memory-utilization {usable:.2f}",
                risk="low",
                basis="log",
                note="what another engine could take beside them",
            ),
        )
    cause = "gpu_in_use" if share >= _FULL else "gpu_shared" if used > _BUSY_BYTES else "gpu_free"
    return [
        Diagnosis(
            cause=cause,
            severity="warning" if used > _BUSY_BYTES else "fine",
            sentence=sentence,
            evidence=_figures(facts),
            mends=mends,
        )
    ]


def _figures(facts: Facts) -> tuple[Evidence, ...]:
    """Every GPU, then the processes that are listed."""
    gpus = tuple(
        Evidence(
            term=f"GPU {index} in use of {size(gpu.number('total'))}",
            value=int(gpu.number("used") or 0),
            unit="bytes",
            where=f"line {gpu.line}",
        )
        for index, gpu in enumerate(facts.scanned.gpus)
    )
    return gpus + tuple(
        Evidence(
            term=f"process {each.number('pid') or 0:.0f} ({str(each.values.get('process', ''))[:60]})",
            value=int(each.number("used") or 0),
            unit="bytes",
            where=f"line {each.line}",
        )
        for each in facts.scanned.smi_processes[:16]
    )
