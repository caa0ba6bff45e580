"""What a training budget says, in words and numbers that every format shares. Nothing here knows how a page looks."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.domain.training_budget import Category, Phase, PhaseName, TrainingBudget, TrainingRemedy
from memplan.report.words import SHORT_VERDICTS, VERDICTS, model_title
from memplan.report.working import Row, span
from memplan.units import format_count, format_gib

CATEGORY_NAMES: dict[Category, str] = {
    "weights": "weights",
    "adapters": "adapters",
    "gathered_weights": "gathered weights",
    "gradients": "gradients",
    "optimizer_state": "optimizer state",
    "activations": "activations",
    "logits_and_loss": "logits and loss",
    "workspace": "workspace",
    "communication_buffers": "communication",
    "unused_segments": "unused in segments",
    "outside_torch": "outside torch",
}
PHASE_NAMES: dict[PhaseName, str] = {
    "load": "load",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer step",
    "evaluation": "evaluation",
    "checkpoint": "saving a checkpoint",
}
_METHODS = {"full": "full training", "lora": "LoRA", "dora": "DoRA", "qlora": "QLoRA"}
_LARGEST = 3


def title(budget: TrainingBudget) -> str:
    """The model, its size, and how it is trained."""
    method = str(budget.settings["train"])
    trained = format_count(budget.trained_parameters)
    what = f"{_METHODS[method]}, {trained} trained" if method != "full" else _METHODS[method]
    return f"{model_title(budget.model_name, budget.parameters)}: {what}"


def where(budget: TrainingBudget) -> str:
    """GPUs, trainer, and the settings that decide most."""
    said = budget.settings
    each = " each" if budget.num_gpus > 1 else ""
    optimizer = f"{said['optimizer']} ({said['optimizer_form']})"
    parts = [
        f"{gpus(budget)} ({format_gib(budget.gpu_memory_bytes)}{each})",
        budget.trainer,
        f"{said['micro_batch']} x {said['seq_len']:,} tokens at once",
        f"{said['grad_accum']} micro-batches a step" if said["grad_accum"] != 1 else "",
        optimizer,
        f"checkpointing {said['checkpointing']}",
        f"loss {said['loss']}",
        sharding(budget),
    ]
    return ", ".join(part for part in parts if part)


def sharding(budget: TrainingBudget) -> str:
    """How the run is spread over GPUs: `fsdp2 over 8`, `tp 2 x pp 4 x zero1 over 2`."""
    said = budget.settings
    parts = [f"{name} {said[name]}" for name in ("tp", "pp", "cp", "ep") if said[name] != 1]
    if said["sharding"] != "none":
        parts.append(f"{said['sharding']} over {said['dp']}")
    return " x ".join(parts)


def gpus(budget: TrainingBudget) -> str:
    """The GPUs as they are named."""
    return f"{budget.num_gpus} x {budget.gpu_name}" if budget.num_gpus > 1 else budget.gpu_name


def each_gpu(budget: TrainingBudget) -> str:
    """The GPU that the numbers are for."""
    return f"each of {budget.num_gpus} GPUs" if budget.num_gpus > 1 else "the GPU"


def peak(budget: TrainingBudget) -> Phase:
    """The phase of the step that peaks."""
    return next(each for each in budget.phases if each.name == budget.peak_phase)


def sentence(budget: TrainingBudget) -> str:
    """The verdict as a sentence, without the verdict's word."""
    name, size = PHASE_NAMES[budget.peak_phase], format_gib(budget.allocated_bytes)
    room = format_gib(budget.gpu_memory_bytes - budget.outside_bytes)
    what = f"the step peaks in {name} with {size} of the {room} that torch can have on {each_gpu(budget)}"
    if budget.verdict == "does_not_fit":
        return f"{format_gib(budget.shortfall_bytes)} short; {what}."
    if budget.verdict == "tight":
        missing = f"{format_gib(budget.shortfall_bytes)} are likely missing; " if budget.shortfall_bytes else ""
        return f"too close to call. {missing}{what}."
    return f"{what}."


def reasons(budget: TrainingBudget) -> tuple[str, ...]:
    """The reasons of a verdict, each a sentence."""
    return tuple(reason[:1].upper() + reason[1:].rstrip(".") + "." for reason in budget.reasons)


def mending(budget: TrainingBudget) -> str:
    """The cheapest change that mends it; nothing where it fits, or nothing was tried."""
    if budget.verdict == "fits" or not budget.remedies:
        return ""
    best = budget.cheapest
    if best is None:
        return "No change that was tried mends it. Take more or larger GPUs, or a smaller model."
    time = f", {percent(best)}" if percent(best) else ""
    outcome = "" if best.verdict == "fits" else " and makes it tight"
    returns = f"returns {format_gib(best.saves_bytes)}{time}{outcome}"
    return f"Cheapest change that mends it: {change(budget, best)}, which {returns}."


def change(budget: TrainingBudget, remedy: TrainingRemedy) -> str:
    """A change as it is typed."""
    return remedy.change.replace("{gpu}", budget.gpu_name)


def percent(remedy: TrainingRemedy) -> str:
    """The cost in time, in words."""
    if remedy.time_percent is None:
        return ""
    if remedy.time_percent == 0:
        return "same speed"
    return f"about {abs(remedy.time_percent)} % {'more' if remedy.time_percent > 0 else 'less'} time"


def limits(budget: TrainingBudget) -> list[tuple[str, str]]:
    """What fits at most, as names and values."""
    found = budget.limits
    if found is None:
        return []
    batch = f"{found.micro_batch:,} sequences of {budget.settings['seq_len']:,} tokens" if found.micro_batch else "none"
    tokens = f"{found.sequence_tokens:,} tokens at micro-batch {budget.settings['micro_batch']}"
    return [
        ("largest micro-batch that fits", batch if found.micro_batch else "not even 1 as asked"),
        ("longest sequence that fits", tokens if found.sequence_tokens else "none as asked"),
    ]


def memory_rows(budget: TrainingBudget) -> list[tuple[str, str]]:
    """What torch and the driver will show, as names and values."""
    rows = [
        ("torch.cuda.max_memory_allocated", format_gib(budget.allocated_bytes)),
        ("torch.cuda.max_memory_reserved", format_gib(budget.reserved_bytes)),
        ("nvidia-smi", f"{format_gib(min(budget.used_bytes, budget.gpu_memory_bytes))} of the process"),
        ("tokens a step", f"{budget.settings['tokens_per_step']:,}"),
    ]
    for line in budget.host:
        rows.append((f"host: {line.name}", f"{format_gib(line.size_bytes)} ({line.formula})"))
    return rows


def line_rows(budget: TrainingBudget) -> list[Row]:
    """Every line, their sum, and what is left of the GPU."""
    rows = [
        Row(
            kind="line",
            name=line.name,
            size=format_gib(line.size_bytes),
            interval=span(line.low_bytes, line.high_bytes, line.size_bytes),
            known=line.provenance,
            working=line.formula,
            source=line.source,
        )
        for line in budget.lines
    ]
    rows.append(Row(kind="sum", name="total used", size=format_gib(budget.used_bytes)))
    unused = budget.gpu_memory_bytes - budget.used_bytes
    name, text = (
        ("left unused", "") if unused >= 0 else ("more than the GPU has", "with all segments that torch would keep")
    )
    rows.append(Row(kind="rest", name=name, size=format_gib(abs(unused)), working=text))
    rows.append(Row(kind="sum", name="memory of the GPU", size=format_gib(budget.gpu_memory_bytes)))
    return rows


def categories(budget: TrainingBudget) -> list[Category]:
    """The categories that any phase holds, in the order in which pages show them."""
    found = {each.category for phase in budget.phases for each in phase.held}
    return [each for each in CATEGORY_NAMES if each in found]


def phase_rows(budget: TrainingBudget) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of phases: peak, what is alive in it by category, what is left after it."""
    names = categories(budget)
    head = ["phase", "peak", *(CATEGORY_NAMES[each] for each in names), "after"]
    rows = []
    for phase in budget.phases:
        sums = phase.category_bytes()
        mark = " <" if phase.name == budget.peak_phase else ""
        after = format_gib(phase.after_bytes) if phase.after_bytes is not None else ""
        rows.append(
            [
                f"{PHASE_NAMES[phase.name]}{mark}",
                format_gib(phase.peak_bytes),
                *(format_gib(sums[each]) if each in sums else "-" for each in names),
                after,
            ]
        )
    return head, rows


def operator_rows(budget: TrainingBudget, number: int = 8) -> list[tuple[str, str, str]]:
    """The largest things alive at the peak: name, size, category."""
    return [
        (each.name, format_gib(each.size_bytes), CATEGORY_NAMES[each.category]) for each in peak(budget).held[:number]
    ]


def remedy_rows(budget: TrainingBudget) -> list[tuple[TrainingRemedy, list[str]]]:
    """Every change with its texts: change, bytes, whether it fits then, time, note."""
    return [
        (
            each,
            [
                change(budget, each),
                format_gib(each.saves_bytes),
                SHORT_VERDICTS[each.verdict],
                percent(each) or "not known",
                each.note,
            ],
        )
        for each in budget.remedies
    ]


def table_rows(budgets: Sequence[TrainingBudget]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of several budgets side by side."""
    head = ["GPU", "memory", "verdict", "peak", "allocated", "reserved", "largest micro-batch"]
    rows = []
    for each in budgets:
        largest = "" if each.limits is None else f"{each.limits.micro_batch:,}"
        rows.append(
            [
                gpus(each),
                format_gib(each.gpu_memory_bytes),
                VERDICTS[each.verdict].lower(),
                PHASE_NAMES[each.peak_phase],
                format_gib(each.allocated_bytes),
                format_gib(each.reserved_bytes),
                largest,
            ]
        )
    return head, rows


def next_step(budget: TrainingBudget) -> str:
    """How to go on from here."""
    best = budget.cheapest
    if best is not None:
        return f"run it again with `{change(budget, best)}`"
    if budget.verdict == "does_not_fit":
        return "the same command without --gpu lists the GPUs that hold it"
    return "`--json` is for scripts; `memplan profile --phase training` runs the model's own code"
