"""The visible pipeline: anything a person names, through a ModelSpec, to MemoryBudgets. Every stage is a recorded value.

    name -> introspect -> ModelSpec -> engine -> MemoryBudget -> report
"""

from __future__ import annotations

from memplan.domain.budget import MemoryBudget
from memplan.domain.gpu import GpuSpec
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout, ServingSettings
from memplan.engines.registry import Engine, load_engine
from memplan.engines.remedies import ranked_remedies
from memplan.errors import UsageError
from memplan.records import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One budget to compute: a model as loaded, on one GPU type, under one engine."""

    spec: ModelSpec
    base_spec: ModelSpec
    gpu: GpuSpec
    settings: ServingSettings
    engine: str
    version: str | None
    num_gpus: int | None = None
    with_remedies: bool = True


def load_model(
    name: str, *, revision: str | None, offline: bool, introspect: str, trust_remote_code: bool = False
) -> ModelSpec:
    """Return the ModelSpec of anything a person names."""
    from memplan.introspect.resolve import resolve_model

    return resolve_model(
        name, revision=revision, offline=offline, introspect=introspect, trust_remote_code=trust_remote_code
    )


def with_scheme(spec: ModelSpec, scheme: str | None) -> ModelSpec:
    """Return the model with its weights stored in `scheme`; unchanged for None, which keeps the checkpoint's own."""
    if scheme is None:
        return spec
    from memplan.catalog.quant_schemes import parse_scheme
    from memplan.introspect.quantized import quantize_spec

    return quantize_spec(spec, parse_scheme(scheme))


def answer(question: Question) -> MemoryBudget:
    """Return the budget of one question, with the knobs that would free memory."""
    engine = load_engine(question.engine)
    settings = question.settings
    if question.num_gpus:
        settings = replace(settings, layout=_layout(question.spec, settings.layout, question.num_gpus))
    budget = engine.estimate(question.spec, question.gpu, settings, question.version)
    if not question.with_remedies:
        return budget
    remedies = ranked_remedies(engine, question.spec, question.base_spec, question.gpu, settings, budget)
    return replace(budget, remedies=remedies)


def _layout(spec: ModelSpec, asked: ParallelLayout, num_gpus: int) -> ParallelLayout:
    """Spread one replica over `num_gpus`: as much tensor parallelism as the heads and a node of eight allow.

    Raises: UsageError when the ranks that were asked for do not multiply to the number of GPUs.
    """
    if asked.num_ranks > 1:
        if num_gpus % asked.num_ranks:
            raise UsageError(
                f"{num_gpus} GPUs do not hold {asked.num_ranks} ranks evenly",
                hint="leave --tp, --pp and --dp out, or make them multiply to the number of GPUs",
            )
        return replace(asked, data=asked.data * (num_gpus // asked.num_ranks))
    heads = [layer.num_heads for layer in spec.layers if layer.num_heads] or [1]
    tensor = max(
        size for size in range(1, min(8, num_gpus) + 1) if num_gpus % size == 0 and all(h % size == 0 for h in heads)
    )
    return replace(asked, tensor=tensor, pipeline=num_gpus // tensor)


def engine_of(name: str) -> Engine:
    """Return an engine by name."""
    return load_engine(name)
