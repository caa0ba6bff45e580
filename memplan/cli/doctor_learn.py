"""`memplan doctor --learn`: what a start-up log measured, kept for later estimates of the same engine and GPU."""

from __future__ import annotations

from memplan.cli.doctor_budget import Reckoned
from memplan.cli.start_up_corrections import save_start_up
from memplan.doctor.facts import Facts
from memplan.domain.correction import Term
from memplan.errors import UsageError

_MEASURED: tuple[tuple[Term, str], ...] = (
    ("activation_peak", "activation_bytes"),
    ("non_torch", "non_torch_bytes"),
    ("cuda_graph", "graphs_bytes"),
)
_LEAST_BYTES = 1 << 20


def learn(facts: Facts, reckoned: Reckoned | None) -> str:
    """Keep the terms that a log prints, beside what the budget without corrections says; return what was kept.

    Raises: UsageError for a log without an engine, a model that is known or terms that can be compared.
    """
    if reckoned is None:
        raise UsageError(
            "nothing to learn from: the model or the GPU is not known",
            hint="name them with --model and --gpu",
        )
    budget = reckoned.plain
    terms: dict[Term, tuple[int, int]] = {}
    for term, name in _MEASURED:
        measured = getattr(facts, name)
        estimated = budget.group_bytes(term)  # type: ignore[arg-type]
        if measured is not None and measured >= 0 and estimated >= _LEAST_BYTES:
            terms[term] = (measured, estimated)
    if not terms:
        raise UsageError(
            "nothing to learn from: the log prints no term of memory",
            hint="vLLM prints them at start-up; SGLang and TensorRT-LLM print graphs and buffers",
        )
    path = save_start_up(
        budget.engine_name,
        reckoned.release,
        reckoned.question.gpu.name,
        model=reckoned.question.base_spec.name,
        ranks=reckoned.question.settings.layout.num_ranks,
        terms=terms,
    )
    kept = ", ".join(term.replace("_", " ") for term in terms)
    return f"learned {kept}: estimate now takes it into account for {budget.engine_name} on this GPU ({path})"
