"""What start-ups showed counts for the knobs as it counts for the answer."""

from __future__ import annotations

from memplan.catalog.gpus import find_gpu
from memplan.domain.correction import Correction
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.remedies import headroom_bytes
from memplan.introspect.resolve import resolve_model
from memplan.pipeline import Question, answer
from memplan.records import replace

LEARNED = Correction(term="activation_peak", phase="start-up", attention="", factors=(3.0,), is_measured=True)


def question(**settings: object) -> Question:
    spec = resolve_model("meta-llama/Llama-3.1-8B-Instruct", offline=True)
    asked = ServingSettings(
        layout=ParallelLayout(tensor=int(str(settings.pop("tp", 1)))),
        workload=Workload(context_tokens=16384, concurrency=4),
        **settings,  # type: ignore[arg-type]
    )
    return Question(
        spec=spec,
        base_spec=spec,
        gpu=find_gpu("a100-80g"),
        settings=asked,
        engine="vllm",
        version=None,
        sharing=1,
        with_remedies=True,
    )


def test_a_knob_returns_what_its_own_corrected_answer_leaves() -> None:
    learned = question(corrections=(LEARNED,))
    budget = answer(learned)
    assert any("learned" in warning for warning in budget.warnings)
    smaller = next(remedy for remedy in budget.remedies if remedy.change.startswith("--kv-dtype fp8"))
    changed = answer(replace(learned, settings=replace(learned.settings, kv_dtype="fp8"), with_remedies=False))
    assert smaller.saves_bytes == headroom_bytes(changed) - headroom_bytes(budget)


def test_a_knob_of_more_ranks_does_not_take_over_what_one_rank_showed() -> None:
    budget = answer(question(corrections=(LEARNED,)))
    two = next(remedy for remedy in budget.remedies if remedy.change == "--tp 2")
    plain = answer(replace(question(tp=2), with_remedies=False))
    assert two.saves_bytes == headroom_bytes(plain) - headroom_bytes(budget)
