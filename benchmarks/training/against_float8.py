"""FP8 products in the training budget beside torchao's own code, run on meta tensors as the simulated profile runs it.

Needs torchao 0.7 to 0.16 (its package `torchao.float8`), which memplan does not install. Linear layers of transformers'
models but the head become torchao's; nothing is compiled. Every point is a recipe, a model and a batch.

    python benchmarks/training/against_float8.py [--json] [--only NAME] [--alive]

Exits with 1 when the median over phases is above 1.5 % or any phase is further apart than 2 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import against_profile
from against_profile import Compared, Point, compare, put_beside, training_of

from memplan.domain.training import TrainingSpec
from memplan.profile import execute
from memplan.records import replace

WORST_LIMIT = 0.02


@dataclass(frozen=True)
class Cast:
    """A point of the other comparison, with a recipe."""

    recipe: str
    point: Point

    @property
    def name(self) -> str:
        return f"{self.recipe}: {self.point.name}"

    @property
    def group(self) -> str:
        return self.recipe


SMALL = {"vocab_size": 2048}
POINTS = tuple(
    Cast(recipe, point)
    for recipe in ("tensorwise", "rowwise")
    for point in (
        Point("llama-8b", 4, optimizer="fused"),
        Point("llama-8b", 2, batch=2, checkpointing=True, optimizer="fused", config=SMALL),
        Point("mistral-7b", 2, tokens=4096, optimizer="fused", config=SMALL),
        Point("qwen3-8b", 2, batch=2, checkpointing=True, optimizer="fused", config=SMALL),
        Point("gemma-2b", 3, checkpointing=True, optimizer="fused", config=SMALL),
    )
)


def converted(model: Any, recipe: str) -> Any:
    """The model with torchao's linear layers."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    return convert_to_float8_training(
        model,
        config=Float8LinearConfig.from_recipe_name(recipe),
        module_filter_fn=lambda module, name: "lm_head" not in name,
    )


def compare_cast(cast: Cast, *, shows: bool) -> list[Compared]:
    """Both sides of a point. The profile and the budget are told of the recipe where they would build their model."""
    build, plain = execute.load_subject, against_profile.training_of

    def subject(*arguments: Any, **named: Any) -> Any:
        made = build(*arguments, **named)
        converted(made.model, cast.recipe)
        return made

    def training(point: Point) -> TrainingSpec:
        return replace(training_of(point), float8=cast.recipe)

    execute.load_subject, against_profile.training_of = subject, training  # type: ignore[assignment]
    try:
        return compare(cast.point, shows=shows)
    finally:
        execute.load_subject, against_profile.training_of = build, plain


if __name__ == "__main__":
    put_beside(POINTS, compare_cast, __doc__.splitlines()[0], worst_limit=WORST_LIMIT)
