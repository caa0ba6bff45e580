"""`memplan plan`: search for the best way to serve, show it, remember it for emit-config; exit 1 when none exists."""

from __future__ import annotations

import sys
from pathlib import Path

from memplan.cli.options import (
    DEVICE_OPTIONS,
    OUTPUT_OPTIONS,
    PLAN_OPTIONS,
    PLAN_TRAINING_OPTIONS,
    REPORT_OPTIONS,
    SERVING_OPTIONS,
    SOURCE_OPTIONS,
    TRAINING,
    TRAINING_OPTIONS,
    Given,
    Option,
    accepts,
)
from memplan.cli.output import answer_with, check_output
from memplan.domain.plan import PlanAnswer, ServingPlan
from memplan.errors import UsageError

_RECIPE = Option(
    name="recipe",
    kind=Path,
    help="Answer a file of recipes/ and check what it expects: exit 1 when it is not so.",
    is_workload=False,
)
_FORMATS = ("json", "markdown", "html", "quiet")
_LEFT_OUT = frozenset({"sharing", "config", "max_num_seqs", "kv_cache_memory"})
_SERVING = tuple(option for option in SERVING_OPTIONS if option.name not in _LEFT_OUT)
_DEVICES = tuple(option for option in DEVICE_OPTIONS if option.name not in _LEFT_OUT)
_REPORT = tuple(option for option in REPORT_OPTIONS if option.name != "fail_on")
# What a plan decides: not taken from an earlier command, only from memplan.yaml and the command line.
_DECIDED = frozenset(
    {
        *("tp", "pp", "dp", "ep", "quant", "kv_dtype", "engine", "max_num_seqs", "max_num_batched_tokens"),
        *("gpu_memory_utilization", "kv_cache_memory", "block_size", "draft_model", "num_speculative_tokens"),
        "cpu_offload",
    }
)


@accepts(
    _RECIPE,
    *_DEVICES,
    *PLAN_OPTIONS,
    *_SERVING,
    *SOURCE_OPTIONS,
    *OUTPUT_OPTIONS,
    *_REPORT,
    *TRAINING_OPTIONS,
    *PLAN_TRAINING_OPTIONS,
)
def plan_command(given: Given) -> None:
    """The best way to serve or train a model: GPUs, layout, precision and batch, found by search, and what it costs."""
    if sum(bool(given.get(name)) for name in _FORMATS) > 1:
        raise UsageError("--json, --markdown, --html and --quiet exclude each other", hint="give one of them")
    check_output(given)
    if _is_training(given):
        from memplan.cli.plan_training import DECIDED, plan_training_command
        from memplan.cli.state import filled_in

        if not plan_training_command(filled_in(given, forget=DECIDED), given):
            raise SystemExit(1)
        return
    from memplan.cli.plan_recipes import Expected, read_recipe, surprises_of
    from memplan.cli.plan_request import plan_request
    from memplan.cli.state import filled_in, remember
    from memplan.pipeline import load_model
    from memplan.plan.search import search

    expected: Expected | None = None
    if "recipe" in given:
        expected, scenario = read_recipe(given["recipe"])
        given = {**scenario, **given}
    asked = filled_in(given, forget=_DECIDED)
    spec = load_model(
        asked["model"],
        revision=asked.get("revision"),
        offline=asked.get("offline", False),
        introspect=asked.get("introspect", "auto"),
        trust_remote_code=asked.get("trust_remote_code", False),
    )
    if not spec.is_generative:
        raise UsageError(f"{spec.name} does not write text", hint=f"memplan estimate {asked['model']} answers for it")
    answer = search(spec, plan_request(asked, spec))
    answer_with(given, _render(given, answer))
    if answer.winner is not None:
        remember({**asked, **as_options(answer.winner)})
    if expected is not None:
        for surprise in (surprises := surprises_of(expected, answer)):
            print(f"recipe: {surprise}", file=sys.stderr)
        raise SystemExit(int(bool(surprises)))
    if answer.winner is None:
        raise SystemExit(1)


def _is_training(given: Given) -> bool:
    """Whether training is asked for: by an option, or by what the directory remembers of a command without a MODEL."""
    if TRAINING & given.keys() or "global_batch" in given:
        return True
    if given.keys() & {"model", "recipe", "config"}:
        return False
    from memplan.cli.state import filled_in

    return "train" in filled_in(given, is_told=False)


def as_options(plan: ServingPlan) -> dict[str, object]:
    """A plan as the options of `memplan estimate` that give its budget again."""
    settings = plan.settings
    options: dict[str, object] = {
        "gpu": plan.gpu.name,
        "engine": f"{plan.engine}@{plan.version}",
        "tp": plan.layout.tensor,
        "pp": plan.layout.pipeline,
        "dp": plan.layout.data,
        "ep": plan.layout.expert,
        "context": str(settings.workload.context_tokens),
        "concurrency": str(settings.workload.concurrency),
        "quant": plan.scheme,
        "kv_dtype": plan.settings.kv_dtype,
        "max_num_seqs": str(settings.max_num_seqs) if settings.max_num_seqs else None,
        "max_num_batched_tokens": str(settings.max_num_batched_tokens) if settings.max_num_batched_tokens else None,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "cpu_offload": str(settings.weight_offload_bytes) if settings.weight_offload_bytes else None,
        "draft_model": plan.speculation.name if plan.speculation else None,
        "num_speculative_tokens": plan.speculation.num_tokens if plan.speculation else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _render(given: Given, answer: PlanAnswer) -> str:
    if given.get("json"):
        from memplan.report.plan_json import plan_json

        return plan_json(answer)
    if given.get("markdown"):
        from memplan.report.plan_markdown import markdown_plan

        return markdown_plan(answer)
    if given.get("html"):
        from memplan.report.plan_html import html_plan

        return html_plan(answer)
    from memplan.cli.listing import page_style
    from memplan.report.plan_text import render_plan, render_winner

    style, _ = page_style(no_color=given.get("no_color", False))
    return render_winner(answer, style) if given.get("quiet") else render_plan(answer, style)
