"""From an answered setup to what an emitter writes down."""

from __future__ import annotations

from memplan.cli.checkpoints import model_reference, online_quantization
from memplan.cli.command_line import command_line
from memplan.cli.setup import Setup
from memplan.domain.emission import EmitSubject
from memplan.pipeline import placed

_TITLES = {"vllm": "vLLM", "sglang": "SGLang", "tensorrt-llm": "TensorRT-LLM"}


def subject_of(setup: Setup, format_name: str) -> EmitSubject:
    """Return what an emitter of `format_name` writes down for a setup."""
    question, budget, given = setup.question, setup.budget, setup.asked.given
    scheme = question.settings.quant
    draft = given.get("draft_model")
    reference = model_reference(given["model"], question.base_spec)
    # A path is told whole: the command is to make the same file in any directory.
    found = {**given, "model": reference} if reference.startswith("/") else given
    return EmitSubject(
        spec_name=question.base_spec.name,
        model_reference=reference,
        spec=question.spec,
        gpu=question.gpu,
        budget=budget,
        settings=placed(question),
        engine=question.engine,
        version=budget.engine_version,
        quantization=online_quantization(question.engine, scheme) if scheme else None,
        command=command_line("emit-config", found, format=format_name),
        checked_for=f"{_TITLES.get(question.engine, question.engine)} {budget.engine_version}",
        revision=given.get("revision"),
        draft_reference=_draft_reference(setup) if draft else None,
        changes=setup.changes,
    )


def _draft_reference(setup: Setup) -> str | None:
    draft, named = setup.question.settings.draft, setup.asked.given["draft_model"]
    if draft is None:
        return None
    return "mtp" if str(named).lower() == "mtp" else model_reference(named, draft)
