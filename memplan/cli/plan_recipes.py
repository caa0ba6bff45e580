"""Recipes of plans: a scenario as memplan.yaml has it, and what its answer is expected to be.

`recipe:` holds `title`, `when` (the row of the decision matrix that it stands for) and `expect`, with any of:

    plan           false where nothing keeps every limit
    engine         the winner's engine, or a list of those that are right
    weight-bits    16, 8, 4: the width of its weights, or a list
    kv-bits        16 or 8: the width of an element of its cache
    min-tp, max-gpus, min-concurrency
    pools          whether prefill and decode have GPUs of their own
    draft          whether tokens are drafted
    bound          {prefill: compute, decode: bandwidth}
    binds          the limit that leaves nothing, where plan is false
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memplan.domain.plan import PlanAnswer, ServingPlan
from memplan.errors import UsageError, did_you_mean
from memplan.records import dataclass

_KEYS = (
    *("plan", "engine", "weight-bits", "kv-bits", "min-tp", "max-gpus", "min-concurrency", "pools", "draft"),
    *("bound", "binds"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a recipe says of its answer."""

    title: str
    facts: Mapping[str, Any]


def read_recipe(path: Path) -> tuple[Expected, dict[str, Any]]:
    """Return what a recipe expects, and its scenario as options.

    Raises: UsageError for a file that is no recipe, or an expectation that is not known.
    """
    from memplan.cli.state import read_scenario

    scenario, recipe = read_scenario(path)
    facts = recipe.get("expect") if isinstance(recipe, Mapping) else None
    if not isinstance(recipe, Mapping) or not isinstance(facts, Mapping):
        raise UsageError(
            f"{path} does not say what it expects", hint="add `recipe: {title: ..., expect: {engine: vllm}}`"
        )
    for key in facts:
        if key not in _KEYS:
            hint = did_you_mean(str(key), list(_KEYS)) or f"use any of {', '.join(_KEYS)}"
            raise UsageError(f"unknown expectation in {path}: `{key}`", hint=hint)
    return Expected(title=str(recipe.get("title", path.stem)), facts=facts), scenario


def surprises_of(expected: Expected, answer: PlanAnswer) -> list[str]:
    """What is not as expected, one line each."""
    facts = expected.facts
    winner = answer.winner
    if winner is None:
        if facts.get("plan", True):
            return ["a plan was expected, and nothing keeps every limit"]
        binds = facts.get("binds")
        found = ", ".join(answer.binding)
        return [f"{binds} was expected to bind, {found} does"] if binds and binds not in answer.binding else []
    if not facts.get("plan", True):
        return ["no plan was expected, and there is one"]
    return [line for key, want in facts.items() if (line := _surprise(key, want, winner))]


def _surprise(key: str, want: Any, plan: ServingPlan) -> str | None:
    found = _found(key, plan)
    if key in ("min-tp", "min-concurrency"):
        right = found >= want
    elif key == "max-gpus":
        right = found <= want
    elif key == "bound":
        right = all(found.get(phase) == bound for phase, bound in want.items())
    elif key in ("plan", "binds"):
        return None
    else:
        right = found in want if isinstance(want, list) else found == want
    return None if right else f"{key}: expected {want}, found {found}"


def _found(key: str, plan: ServingPlan) -> Any:
    from memplan.catalog.quality import scheme_bits

    if key == "weight-bits":
        plain = plan.scheme in (None, "none") and plan.weights_scheme in ("bfloat16", "float16")
        return 16 if plain else scheme_bits(plan.weights_scheme)
    if key == "kv-bits":
        return 16 if plan.kv_dtype is None else 8
    return {
        "engine": plan.engine,
        "min-tp": plan.layout.tensor,
        "max-gpus": plan.num_gpus,
        "min-concurrency": plan.concurrency,
        "pools": plan.prefill is not None,
        "draft": plan.speculation is not None,
        "bound": plan.speed.bound,
    }.get(key)
