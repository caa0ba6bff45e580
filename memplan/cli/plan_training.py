"""`memplan plan --train`: from options to a search for a way to train, its page, and what emit-config goes on from."""

from __future__ import annotations

from typing import Any

from memplan.cli.options import PLAN_OPTIONS, Given
from memplan.cli.output import answer_with
from memplan.cli.serving_options import parse_devices
from memplan.cli.training_options import check_training, training_question
from memplan.domain.training_plan import (
    TRAINING_GOALS,
    TrainingCandidate,
    TrainingGoal,
    TrainingOffer,
    TrainingPlanAnswer,
    TrainingPlanRequest,
)
from memplan.errors import UsageError, did_you_mean
from memplan.records import replace

# Options that fix what the search would choose, and the fields of a question that they fill.
_FIXES = {
    "trainer": "trainer",
    "micro_batch": "micro_batch",
    "grad_accum": "accumulation",
    "optimizer": "optimizer",
    "sharding": "sharding",
    "checkpointing": "checkpointing",
    "mixed_precision": "precision",
    "loss": "loss",
    "offload": "offloaded",
    "tp": "tensor",
    "pp": "pipeline",
    "dp": "data",
    "ep": "expert",
    "cp": "context",
}
# What a plan decides: not taken from an earlier command in the directory.
DECIDED = frozenset(_FIXES) - {"trainer", "mixed_precision", "optimizer"}
_SEARCHED = (1, 2, 4, 8)
_VENDORS = ("nvidia", "amd")
_BF16_CAPABILITY = 8.0  # older cards multiply in FP16


def plan_training_command(given: Given, here: Given) -> bool:
    """Answer, and return whether there is a plan. `here` is what the command line itself gave.

    Raises: MemplanError for a bad value or combination, an unknown name or a model that cannot be trained.
    """
    if here.get("html") or "recipe" in here:
        what = "--html" if here.get("html") else "--recipe"
        raise UsageError(f"{what} is not there for training plans", hint="use --json, --markdown or the plain page")
    _check(given, here)
    from memplan.cli.state import remember
    from memplan.pipeline import load_model
    from memplan.plan.training import plan_training

    request = training_request(given)
    spec = load_model(
        given["model"],
        revision=given.get("revision"),
        offline=given.get("offline", False),
        introspect=given.get("introspect", "auto"),
        trust_remote_code=given.get("trust_remote_code", False),
    )
    answer = plan_training(spec, request)
    answer_with(given, _render(given, answer))
    if answer.winner is not None:
        kept = {name: value for name, value in given.items() if name not in _FIXES}
        remember({**kept, **as_training_options(answer.winner)})
    return answer.winner is not None


def _check(given: Given, here: Given) -> None:
    """Raises: UsageError for options of serving, and those of training without --train."""
    if "train" not in given and "global_batch" in given:
        raise UsageError("--global-batch without --train", hint="--train full, lora, dora or qlora plans training")
    for option in PLAN_OPTIONS:
        if option.name in here and option.name != "goal":
            flag = f"--{option.name.replace('_', '-')}"
            raise UsageError(f"{flag} is of serving, not of training", hint="leave it out")
    check_training(given, here)


def training_request(given: Given) -> TrainingPlanRequest:
    """Return what the options ask. Raises: UsageError for no GPU, an unknown goal, or a batch that is none."""
    goal = _goal(given)
    question = training_question(given, num_gpus=None)
    fixed = {field for name, field in _FIXES.items() if name in given}
    devices = parse_devices(given.get("gpu"), memory=given.get("gpu_memory"), free=given.get("gpu_free"))
    if not devices:
        raise UsageError("no GPU was named", hint="add one, such as --gpu h100x8; `memplan gpus` lists them")
    for device in devices:
        if device.gpu.vendor not in _VENDORS:
            raise UsageError(f"training is not planned for {device.gpu.name}", hint="name NVIDIA or AMD cards")
    if question.method == "full" and "precision" not in fixed:
        has_bf16 = all((each.gpu.cuda_capability or _BF16_CAPABILITY) >= _BF16_CAPABILITY for each in devices)
        question = replace(question, precision="bf16" if has_bf16 else "fp16")
    batch = given.get("global_batch")
    if batch is not None and not 1 <= batch <= 1 << 20:
        raise UsageError(f"--global-batch out of range: {batch}", hint="it must be between 1 and 1,048,576")
    if batch is not None and "accumulation" in fixed:
        raise UsageError("--global-batch and --grad-accum exclude each other", hint="the one decides the other")
    offers = []
    for device in devices:
        count = device.count or 1
        counts = tuple(sorted({*(each for each in _SEARCHED if each <= count), count})) if goal == "cost" else (count,)
        offers.append(TrainingOffer(gpu=device.gpu, counts=counts, free_bytes=device.free_bytes))
    return TrainingPlanRequest(
        goal=goal, question=question, fixed=frozenset(fixed), offers=tuple(offers), global_batch=batch
    )


def _goal(given: Given) -> TrainingGoal:
    asked = str(given.get("goal", "throughput")).strip().lower()
    for goal in TRAINING_GOALS:
        if asked == goal:
            return goal
    hint = did_you_mean(asked, list(TRAINING_GOALS)) or f"for training use one of {', '.join(TRAINING_GOALS)}"
    raise UsageError(f"unknown goal: `{given['goal']}`", hint=hint)


def as_training_options(found: TrainingCandidate) -> dict[str, Any]:
    """A candidate as the options of `memplan estimate --train` that give its budget again."""
    question, training = found.question, found.training
    options: dict[str, Any] = {
        "gpu": f"{found.gpu.name}x{found.num_gpus}" if found.num_gpus > 1 else found.gpu.name,
        "trainer": question.trainer,
        "sharding": question.sharding,
        "checkpointing": training.checkpointing,
        "loss": question.loss,
        "optimizer": question.optimizer,
        "mixed_precision": question.precision,
        "fp8_recipe": question.float8,
        "micro_batch": question.micro_batch,
        "grad_accum": question.accumulation,
        "offload": ",".join(question.offloaded) or None,
        "tp": question.tensor if question.tensor > 1 else None,
        "pp": question.pipeline if question.pipeline > 1 else None,
        "cp": question.context if question.context > 1 else None,
        "ep": True if training.layout.expert > 1 else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _render(given: Given, answer: TrainingPlanAnswer) -> str:
    if given.get("json"):
        from memplan.report.training_plan_json import training_plan_json

        return training_plan_json(answer)
    if given.get("markdown"):
        from memplan.report.training_plan_text import markdown_training_plan

        return markdown_training_plan(answer)
    from memplan.cli.listing import page_style
    from memplan.report.training_plan_text import render_training_plan, render_training_winner

    style, _ = page_style(no_color=given.get("no_color", False))
    return render_training_winner(answer, style) if given.get("quiet") else render_training_plan(answer, style)
