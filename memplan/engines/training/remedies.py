"""Changes that make a training run smaller, each computed again: bytes, verdict, and roughly what it costs in time.

Times are of one token, by the field's own measurements:
- full checkpointing runs the forward pass twice, a third of a step's work more (Chen et al. 2016, arXiv:1604.06174);
  selective a few percent (Korthikanti et al. 2022, arXiv:2205.05198, section 5);
- 4 bit weights are dequantized for every product: about 39 % in S. Raschka's runs of 2023 (LoRA insights);
- states and weights that are offloaded go over PCIe in every step: their bytes are named, the bus decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from memplan.budget.links import pcie_bytes_per_s
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.training import GATHERING
from memplan.domain.training_budget import TrainingRemedy
from memplan.domain.training_question import AskedSharding, TrainingQuestion
from memplan.engines.training.choose import choose_training
from memplan.engines.training.held import trained_parameters
from memplan.engines.training.measure import Measured, measure
from memplan.engines.training.presets import PRESETS
from memplan.errors import MemplanError
from memplan.records import dataclass, replace
from memplan.units import format_gib

_RECOMPUTE_PERCENT, _SELECTIVE_PERCENT, _DEQUANTIZE_PERCENT = 33, 5, 39
_LEAST_SHARE = 0.02
_LEAST_BYTES = 16 << 20  # of less nobody wants to hear
_WORTH_MORE_GPUS = 1.05  # twice the GPUs have to return that much more
_GPU_COUNTS = (2, 4, 8, 16, 32, 64)

Try = Callable[[TrainingQuestion], "Measured | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of a question. `cost` is what it takes, least first: nothing, time, the numbers, the method, money."""

    flags: str
    fields: dict[str, Any]
    time_percent: int | None
    note: str
    cost: int


# How each field is written on the command line.
FLAGS = {
    "method": "--train",
    "loss": "--loss",
    "checkpointing": "--checkpointing",
    "micro_batch": "--micro-batch",
    "accumulation": "--grad-accum",
    "optimizer": "--optimizer",
    "optimizer_form": "--optimizer-form",
    "sharding": "--sharding",
    "offloaded": "--offload",
}


def _change(cost: int, time_percent: int | None, note: str, *, now: str = "", **fields: Any) -> Change:
    """`now` is the sharding that needs no mention; None in a field takes back what was asked for."""
    words = [
        f"{FLAGS[name]} {value if isinstance(value, (str, int)) else ','.join(value)}"
        for name, value in fields.items()
        if value is not None and value != now
    ]
    return Change(flags=" ".join(words), fields=fields, time_percent=time_percent, note=note, cost=cost)


def find_remedies(
    spec: ModelSpec, gpu: GpuSpec, question: TrainingQuestion, measured: Measured, free_bytes: int | None
) -> tuple[TrainingRemedy, ...]:
    """What returns memory, by how little it costs; and where nothing alone is enough, the cheapest of them together."""

    known: dict[TrainingQuestion, Measured | None] = {question: measured}

    def tried(changed: TrainingQuestion) -> Measured | None:
        if changed not in known:
            try:
                known[changed] = measure(spec, choose_training(changed, spec, gpu), gpu, free_bytes)
            except MemplanError:
                known[changed] = None
        return known[changed]

    found: list[tuple[Change, TrainingRemedy]] = []
    for change in _changes(spec, gpu, question, measured):
        made = tried(replace(question, **change.fields))
        if made is not None and measured.allocated_bytes - made.allocated_bytes >= _LEAST_BYTES:
            found.append((change, _remedy(change, measured, made)))
    if (smaller := _smaller_batch(question, measured, tried)) is not None:
        found.append(smaller)
    remedies = [remedy for _, remedy in found]
    if measured.verdict == "does_not_fit" and not any(each.verdict == "fits" for each in remedies):
        together = _together(question, measured, [change for change, _ in found], tried)
        remedies += [together] if together is not None else []
    remedies += _more_gpus(question, measured, tried, gpu_is_unnamed=gpu.source == "--gpu-memory")
    return tuple(sorted(remedies, key=lambda each: (each.cost, -each.saves_bytes)))


def _remedy(change: Change, measured: Measured, made: Measured) -> TrainingRemedy:
    name = made.step.peak.name
    assert name in ("load", "forward", "backward", "optimizer")
    return TrainingRemedy(
        change=change.flags,
        saves_bytes=measured.allocated_bytes - made.allocated_bytes,
        verdict=made.verdict,
        phase=name,  # type: ignore[arg-type]
        time_percent=change.time_percent,
        note=change.note,
        cost=change.cost,
    )


def _changes(spec: ModelSpec, gpu: GpuSpec, question: TrainingQuestion, measured: Measured) -> Iterator[Change]:
    training = measured.training
    if training.optimizer_form != "fused" and training.optimizer == "adamw":
        yield _change(0, 0, "no temporaries at the step", optimizer_form="fused")
    if training.loss not in ("linear", "compiled"):
        yield _change(1, 0, "head and loss in one kernel, never all logits", loss="linear")
    yield from _checkpointing(training.checkpointing, has_selective=PRESETS[question.trainer].has_selective)
    if training.optimizer == "adamw" and question.trainer != "megatron" and _state_share(measured) >= _LEAST_SHARE:
        yield _change(5, 0, "moments of 8 bits", optimizer="adamw-8bit")
        if training.method != "full":
            note = "moments of 8 bits that move to the host when memory is short"
            yield _change(6, None, note, optimizer="paged-adamw-8bit")
    yield from _offloads(spec, gpu, question, measured)
    yield from _methods(question)


def _smaller_batch(question: TrainingQuestion, measured: Measured, tried: Try) -> tuple[Change, TrainingRemedy] | None:
    """The same batch in more and smaller micro-batches: halved until it fits, or down to one sequence."""
    training = measured.training
    number, accumulation = training.micro_batch, training.accumulation
    found: tuple[Change, TrainingRemedy] | None = None
    while number > 1:
        factor = 2 if number % 2 == 0 else number
        number, accumulation = number // factor, accumulation * factor
        note = "the same batch in smaller products"
        change = _change(3, None, note, micro_batch=number, accumulation=accumulation)
        made = tried(_with(question, [change]))
        if made is not None and measured.allocated_bytes - made.allocated_bytes >= _LEAST_BYTES:
            found = change, _remedy(change, measured, made)
        if made is None or made.verdict == "fits":
            break
    return found


def _state_share(measured: Measured) -> float:
    """What part of the peak the optimizer's state is."""
    held = measured.step.peak.held
    return sum(size for (category, _), size in held.items() if category == "optimizer state") / measured.allocated_bytes


def _checkpointing(now: str, *, has_selective: bool) -> Iterator[Change]:
    if now == "none" and has_selective:
        yield _change(2, _SELECTIVE_PERCENT, "cheap operators run twice", checkpointing="selective")
    if now != "full":
        yield _change(4, _RECOMPUTE_PERCENT, "every layer's forward pass runs twice", checkpointing="full")


def _methods(question: TrainingQuestion) -> Iterator[Change]:
    if question.method == "full":
        note = "adapters alone are trained: another result; no weight gradients"
        yield _change(8, -_RECOMPUTE_PERCENT, note, method="lora", precision=None)
    if question.method in ("full", "lora", "dora"):
        note = "adapters on 4 bit weights: another result"
        yield _change(9, _DEQUANTIZE_PERCENT, note, method="qlora", precision=None)


def _offloads(spec: ModelSpec, gpu: GpuSpec, question: TrainingQuestion, measured: Measured) -> Iterator[Change]:
    training, offloaded = measured.training, question.offloaded
    if training.checkpointing == "full" and not training.offload_activations:
        note = "what enters each layer waits on the host"
        yield _change(7, None, note, checkpointing="full", offloaded=(*offloaded, "activations"))
    if training.offload_optimizer or training.method != "full":
        return
    kinds = PRESETS[question.trainer].shardings
    width = training.master_bytes + 2 * training.state_bytes + training.grad_bytes + training.weight_bytes
    moved = trained_parameters(spec, training) * width / training.layout.ranks
    seconds = moved / pcie_bytes_per_s(gpu)
    now = training.sharding
    zero = now if now in ("zero1", "zero2", "zero3") else "zero2"
    if zero in kinds:
        note = f"the step runs on the host: {format_gib(moved)} there, {seconds:.1f} s of PCIe"
        yield _change(10, None, note, now=now, sharding=zero, offloaded=(*offloaded, "optimizer"))
    gathered = now if now in GATHERING else "fsdp2"
    if gathered in kinds:
        note = "weights come over PCIe layer by layer, twice a micro-batch"
        yield _change(11, None, note, now=now, sharding=gathered, offloaded=(*offloaded, "optimizer", "parameters"))


def _together(
    question: TrainingQuestion, measured: Measured, changes: list[Change], tried: Try
) -> TrainingRemedy | None:
    """The smallest set of cheap changes that fits: added by what they cost until it fits, then those that it does not
    need are left out again, the dearest first.
    """
    chosen: list[Change] = []
    best = measured
    for change in sorted(changes, key=lambda each: each.cost):
        if change.fields.get("checkpointing") == "selective" or "sharding" in change.fields:
            continue
        made = tried(_with(question, [*chosen, change]))
        if made is None or best.allocated_bytes - made.allocated_bytes < _LEAST_BYTES:
            continue
        chosen.append(change)
        best = made
        if made.verdict == "fits":
            break
    for change in reversed(chosen[:-1]):
        fewer = [each for each in chosen if each is not change]
        made = tried(_with(question, fewer)) if best.verdict == "fits" else None
        if made is not None and made.verdict == "fits":
            chosen, best = fewer, made
    if best.verdict == "does_not_fit" or len(chosen) < 2:
        return None
    flags: dict[str, str] = {}
    for each in chosen:
        flags |= _split(each.flags)
    together = Change(
        flags=" ".join(f"{flag} {value}" for flag, value in flags.items()),
        fields={},
        time_percent=sum(each.time_percent or 0 for each in chosen),
        note="together",
        cost=max(each.cost for each in chosen),
    )
    return _remedy(together, measured, best)


def _with(question: TrainingQuestion, changes: list[Change]) -> TrainingQuestion:
    fields: dict[str, Any] = {}
    for each in changes:
        fields |= each.fields
    return replace(question, **fields)


def _split(flags: str) -> dict[str, str]:
    words = flags.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def _more_gpus(
    question: TrainingQuestion, measured: Measured, tried: Try, *, gpu_is_unnamed: bool
) -> list[TrainingRemedy]:
    """The fewest more GPUs, sharded, that fit; nothing where the run fits already."""
    training = measured.training
    if measured.verdict == "fits":
        return []
    kinds = PRESETS[question.trainer].shardings
    sharding: AskedSharding = training.sharding
    if sharding in ("none", "ddp"):
        sharding = "fsdp2" if "fsdp2" in kinds else PRESETS[question.trainer].sharding
    last: TrainingRemedy | None = None
    for factor in _GPU_COUNTS:
        count = training.layout.ranks * factor
        if count > max(_GPU_COUNTS):
            break
        made = tried(replace(question, num_gpus=count, data=1, sharding=sharding))
        if made is None:
            return []
        if measured.allocated_bytes - made.allocated_bytes < (last.saves_bytes if last else 0) * _WORTH_MORE_GPUS:
            break
        flag = f"--dp {count}" if gpu_is_unnamed else f"--gpu {{gpu}}x{count}"
        change = Change(
            flags=f"{flag} --sharding {sharding}",
            fields={},
            time_percent=None,
            note=f"{factor} times the GPUs, and as many more tokens a step",
            cost=12,
        )
        last = _remedy(change, measured, made)
        if made.verdict == "fits":
            return [last]
        if factor >= 8 and last.verdict == "does_not_fit":
            break
    return [last] if last is not None and last.verdict != "does_not_fit" else []
