"""`memplan emit-config --train`: the run that is written: as asked where it fits, else with the cheapest change."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator

from memplan.budget.links import GPUS_PER_MACHINE
from memplan.cli.checkpoints import model_reference
from memplan.cli.command_line import command_line
from memplan.cli.options import TRAINING_OPTIONS, Given
from memplan.cli.serving_options import Device, parse_devices
from memplan.cli.training_options import check_training, training_question
from memplan.domain.emission import Emission
from memplan.domain.model import ModelSpec
from memplan.domain.training_budget import TrainingRemedy
from memplan.domain.training_emission import TrainingSubject
from memplan.emit.registry import find_training_format, load_training_emitter
from memplan.engines.training.answer import TrainingAsked, answer_training
from memplan.engines.training.choose import choose_training
from memplan.errors import DoesNotFit, UsageError
from memplan.pipeline import load_model
from memplan.units import format_gib

# Changes of these give another result than the one that was asked for: they are never made by themselves.
_NEVER = ("--train", "--optimizer")
_INTEGERS = frozenset(option.name for option in TRAINING_OPTIONS if option.kind is int)


def training_emission(given: Given, here: Given) -> tuple[str, Emission]:
    """Return the format and its files; what there is to say goes to stderr. `here` is what the command line gave.

    Raises: DoesNotFit where no change that keeps the result fits, or --strict refuses to look; UsageError for what the
    format cannot hold.
    """
    check_training(given, here)
    name, given = _for_format(given, here)
    spec = load_model(
        given["model"],
        revision=given.get("revision"),
        offline=given.get("offline", False),
        introspect=given.get("introspect", "auto"),
        trust_remote_code=given.get("trust_remote_code", False),
    )
    subject = _subject(given, spec, name)
    if subject.budget.verdict == "does_not_fit":
        subject, emission = _mended(subject, given, spec, name)
    else:
        emission = load_training_emitter(find_training_format(name, "")[1])(subject)
    for note in (*subject.changes, *subject.budget.warnings, *emission.notes):
        print(f"note: {note}", file=sys.stderr)
    if subject.budget.verdict == "tight":
        print("note: it is tight: it may or may not fit", file=sys.stderr)
    return name, emission


def _for_format(given: Given, here: Given) -> tuple[str, Given]:
    """The format, and the trainer and sharding that it is for where the command line named none."""
    trainer = given.get("trainer", "transformers").strip().lower()
    name, found = find_training_format(given.get("format"), trainer)
    if trainer not in found.engines:
        if "trainer" in here:
            raise UsageError(f"format {name} is not for {trainer}", hint=f"it is for {' and '.join(found.engines)}")
        given = {**given, "trainer": found.engines[0]}
    if name == "deepspeed" and not str(given.get("sharding", "")).startswith("zero"):
        if "sharding" in here:
            raise UsageError(f"DeepSpeed has no `{given['sharding']}`", hint="use --sharding zero1, zero2 or zero3")
        given = {**given, "sharding": "zero3" if given.get("train") == "full" else "zero2"}
    return name, given


def _subject(given: Given, spec: ModelSpec, name: str, changes: tuple[str, ...] = ()) -> TrainingSubject:
    device = _device(given)
    question = training_question(given, num_gpus=device.count)
    budget = answer_training(
        TrainingAsked(
            spec=spec, gpu=device.gpu, question=question, free_bytes=device.free_bytes, with_remedies=not changes
        )
    )
    reference = model_reference(given["model"], spec)
    found = {**given, "model": reference} if reference.startswith("/") else given
    return TrainingSubject(
        model_reference=reference,
        spec=spec,
        gpu=device.gpu,
        question=question,
        training=choose_training(question, spec, device.gpu),
        budget=budget,
        machine_gpus=GPUS_PER_MACHINE,
        command=command_line("emit-config", found, format=name),
        revision=given.get("revision"),
        changes=changes,
    )


def _device(given: Given) -> Device:
    devices = parse_devices(given.get("gpu"), memory=given.get("gpu_memory"), free=given.get("gpu_free"))
    if not devices:
        raise UsageError("no GPU was named", hint="add one, such as --gpu h100x8; `memplan gpus` lists them")
    return devices[0]


def _mended(subject: TrainingSubject, given: Given, spec: ModelSpec, name: str) -> tuple[TrainingSubject, Emission]:
    """The run with the cheapest change that fits, keeps the result, and that the format can hold."""
    budget = subject.budget
    short = (
        f"{budget.model_name} is {format_gib(budget.shortfall_bytes)} short on {budget.num_gpus} x {budget.gpu_name}"
    )
    if given.get("strict"):
        raise DoesNotFit(short, hint="without --strict, the cheapest change that fits is written")
    emit = load_training_emitter(find_training_format(name, "")[1])
    refused: UsageError | None = None
    for remedy in _by_cost(budget.remedies):
        change = f"`{remedy.change.format(gpu=budget.gpu_name)}`, because as asked it is {short.split(' is ')[1]}"
        made = _subject({**given, **_options(remedy, budget.gpu_name)}, spec, name, (change,))
        try:
            return made, emit(made)
        except UsageError as error:
            refused = error
    if refused is not None:
        raise refused
    raise DoesNotFit(
        f"{short}, and nothing that keeps the result fits",
        hint="`memplan estimate --train` shows what each change returns; --train lora or qlora trains adapters",
    )


def _by_cost(remedies: tuple[TrainingRemedy, ...]) -> Iterator[TrainingRemedy]:
    for verdict in ("fits", "tight"):
        for remedy in sorted(remedies, key=lambda each: (each.cost, -each.saves_bytes)):
            if remedy.verdict == verdict and not any(f"{flag} " in f"{remedy.change} " for flag in _NEVER):
                yield remedy


def _options(remedy: TrainingRemedy, gpu: str) -> dict[str, object]:
    """The flags of a change as options."""
    words = shlex.split(remedy.change.format(gpu=gpu))
    found: dict[str, object] = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        found[name] = int(value) if name in _INTEGERS else value
    return found
