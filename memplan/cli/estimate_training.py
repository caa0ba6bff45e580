"""`memplan estimate --train`: from options to budgets of training, and to the page that shows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from memplan.cli.options import Given
from memplan.cli.output import answer_with
from memplan.cli.serving_options import parse_devices
from memplan.cli.training_options import check_training, training_question
from memplan.domain.training_budget import TrainingBudget
from memplan.errors import UnsupportedModel

if TYPE_CHECKING:
    from memplan.engines.training.answer import TrainingAsked


def answer_training_command(given: Given, here: Given) -> set[str]:
    """Answer, and return the verdicts. `here` is what the command line itself gave.

    Raises: MemplanError for a bad value or combination, an unknown name or a model that cannot be trained as asked.
    """
    check_training(given, here)
    from memplan.cli.state import remember
    from memplan.engines.training.answer import TrainingAsked
    from memplan.pipeline import load_model

    training_question(given, num_gpus=None)  # before a model is read
    spec = load_model(
        given["model"],
        revision=given.get("revision"),
        offline=given.get("offline", False),
        introspect=given.get("introspect", "auto"),
        trust_remote_code=given.get("trust_remote_code", False),
    )
    answer = answerer(given)
    devices = parse_devices(given.get("gpu"), memory=given.get("gpu_memory"), free=given.get("gpu_free"))
    if devices:
        left_out: tuple[str, ...] = ()
        budgets = [
            answer(
                TrainingAsked(
                    spec=spec,
                    gpu=device.gpu,
                    question=training_question(given, num_gpus=device.count),
                    free_bytes=device.free_bytes,
                    with_remedies=not given.get("quiet") and len(devices) < 4,
                )
            )
            for device in devices
        ]
    else:
        from memplan.engines.training.holders import find_training_holders

        budgets, left_out = find_training_holders(spec, training_question(given, num_gpus=None), answer)
    answer_with(given, _render(given, budgets, left_out if not devices else None))
    remember(given)
    return {each.verdict for each in budgets} if devices else set()


def answerer(given: Given) -> Callable[[TrainingAsked], TrainingBudget]:
    """What answers: formulas; for pictures, and for layers that these do not know, a profile of the model's code."""
    from memplan.engines.training.answer import answer_training

    def answer(asked: TrainingAsked) -> TrainingBudget:
        try:
            return answer_training(asked)
        except UnsupportedModel:
            from memplan.cli.training_profile import ProfiledAnswers

            return ProfiledAnswers(given).answer(asked)

    return answer


def _render(given: Given, budgets: Sequence[TrainingBudget], left_out: tuple[str, ...] | None) -> str:
    """The page in the format that was asked for; `left_out` are the GPUs that do not hold it where none was named."""
    if given.get("json"):
        from memplan.report.training_json import training_json

        return training_json(budgets, left_out)
    if given.get("markdown"):
        from memplan.report.training_markdown import markdown_training

        return markdown_training(budgets, left_out)
    if given.get("html"):
        from memplan.report.training_html import html_training

        return html_training(budgets, left_out)
    from memplan.cli.listing import page_style
    from memplan.report.training_text import render_training, render_training_table, render_training_verdict

    style, _ = page_style(no_color=given.get("no_color", False))
    if given.get("quiet"):
        return "".join(render_training_verdict(each, style, named=len(budgets) > 1) for each in budgets)
    if left_out is not None or len(budgets) > 1:
        return render_training_table(budgets, left_out or (), style)
    return render_training(budgets[0], style)
