"""What a plan of training says, in words and numbers that every format shares."""

from __future__ import annotations

from memplan.domain.training_plan import TrainingCandidate, TrainingPlanAnswer
from memplan.report.training_words import title as budget_title
from memplan.report.words import VERDICTS
from memplan.units import format_gib

_SHARDINGS = {
    "none": "no sharding",
    "ddp": "DDP",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
    "fsdp": "FSDP",
    "fsdp1": "FSDP1",
    "fsdp2": "FSDP2",
    "hsdp": "HSDP",
}
_GOALS = {"throughput": "most tokens a second", "cost": "fewest dollars a token", "memory": "least memory"}
HEAD = ("way", "micro-batch", "peak", "tokens/s", "MFU", "$ / 1e9 tokens")
CHANGE_HEAD = ("change", "saves", "verdict", "time a token", "what it does")


def title(answer: TrainingPlanAnswer) -> str:
    """The model, how it is trained, and what is looked for."""
    return f"{budget_title(answer.asked)}; {_GOALS[answer.goal]}"


def as_asked(answer: TrainingPlanAnswer) -> str:
    """What the run comes to without a search."""
    asked = answer.asked
    said = asked.settings
    short = f", {format_gib(asked.shortfall_bytes)} short" if asked.shortfall_bytes else ""
    verdict = VERDICTS[asked.verdict].lower().rstrip(":")
    return (
        f"as asked, with the settings of {asked.trainer} itself ({said['sharding']}, checkpointing"
        f" {said['checkpointing']}, micro-batch {said['micro_batch']}) on {asked.num_gpus} x {asked.gpu_name}:"
        f" {verdict}{short}"
    )


def way(found: TrainingCandidate) -> str:
    """One candidate in a line: who trains, how the model is shared, what is computed twice, what is offloaded."""
    question = found.question
    layout = found.training.layout
    ranks_of = (("TP", layout.tensor), ("PP", layout.pipeline), ("CP", layout.context), ("EP", layout.expert))
    cuts = [f"{name} {ranks}" for name, ranks in ranks_of if ranks > 1]
    parts = [
        f"{found.num_gpus} x {found.gpu.name}",
        question.trainer,
        " x ".join([*cuts, _SHARDINGS[question.sharding or "none"]]),
        f"checkpointing {found.training.checkpointing}" if found.training.checkpointing != "none" else "",
        f"loss {question.loss}" if question.loss else "",
        f"offload {' and '.join(question.offloaded)}" if question.offloaded else "",
        question.optimizer if question.optimizer != "adamw" else "",
        "in 16 bits" if "everything in 16 bits" in found.changes else "",
    ]
    return ", ".join(part for part in parts if part)


def batch(found: TrainingCandidate) -> str:
    """`4 x 2 accumulated`."""
    question = found.question
    return f"{question.micro_batch} x {question.accumulation}"


def row(found: TrainingCandidate) -> tuple[str, ...]:
    """A candidate as cells below HEAD."""
    cost = found.usd_per_billion_tokens
    return (
        way(found) + (" (tight)" if found.is_tight else ""),
        batch(found),
        format_gib(found.allocated_bytes),
        f"{found.tokens_per_s:,.0f}",
        f"{found.mfu:.0%}",
        f"{cost:,.0f}" if cost is not None else "-",
    )


def sentence(answer: TrainingPlanAnswer) -> str:
    """The answer in one sentence."""
    found = answer.winner
    if found is None:
        return "nothing that was tried has room"
    room = format_gib(found.room_bytes)
    return (
        f"{way(found)}: {batch(found)} sequences a rank and step, {format_gib(found.allocated_bytes)} of {room} at the"
        f" peak, about {found.tokens_per_s:,.0f} tokens a second, MFU {found.mfu:.0%}"
    )


def time_parts(found: TrainingCandidate) -> str:
    """Where a step's time goes, the largest first."""
    parts = sorted(found.parts_s.items(), key=lambda item: -item[1])
    shown = ", ".join(
        f"{name} {seconds / found.step_s:.0%}" for name, seconds in parts if seconds > 0.005 * found.step_s
    )
    return f"a step of {found.tokens_per_step:,} tokens takes {found.step_s:,.2f} s: {shown}"


def limits(answer: TrainingPlanAnswer) -> str:
    """The largest micro-batch and sequence of the winner; empty without one."""
    if answer.limits is None or answer.winner is None:
        return ""
    return (
        f"this way the largest micro-batch is {answer.limits.micro_batch:,}, the longest sequence"
        f" {answer.limits.sequence_tokens:,} tokens"
    )


def change_rows(answer: TrainingPlanAnswer) -> list[tuple[str, ...]]:
    """What makes the run as asked smaller, as cells below CHANGE_HEAD."""
    return [
        (
            each.change,
            format_gib(each.saves_bytes),
            VERDICTS[each.verdict].lower().rstrip(":"),
            f"{each.time_fraction:+.0%}" if each.time_fraction is not None else "",
            each.note,
        )
        for each in answer.changes
    ]
