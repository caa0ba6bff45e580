"""What a budget says of starting at all: first among its reasons, in JSON, and in the knobs that it offers."""

from __future__ import annotations

from memplan.catalog.gpus import find_gpu
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.pipeline import Question, answer, load_model, with_scheme


def budget(
    gpu: str, scheme: str | None = None, *, version: str | None = None, context: int = 8192, **settings: object
) -> MemoryBudget:
    base = load_model("llama-3.1-8b", revision=None, offline=True, introspect="auto")
    return answer(
        Question(
            spec=with_scheme(base, scheme),
            base_spec=base,
            gpu=find_gpu(gpu),
            settings=ServingSettings(quant=scheme, workload=Workload(context_tokens=context), **settings),  # type: ignore[arg-type]
            engine="vllm",
            version=version,
        )
    )


def test_a_format_without_a_kernel_is_the_first_reason_and_leaves_the_verdict_to_memory() -> None:
    found = budget("b200", "w8a8-int8")
    assert found.verdict == "fits"
    assert found.reasons[0].startswith("cannot start on b200: ")
    assert "use --quant fp8" in found.reasons[0]
    shown = found.extra["servable"]
    assert isinstance(shown, dict)
    assert (shown["runs"], shown["speed"]) == (False, None)


def test_a_format_that_another_kernel_emulates_is_a_warning() -> None:
    found = budget("a100-80g", "fp8")
    assert not any("cannot start" in reason for reason in found.reasons)
    assert any("Marlin W8A16" in warning for warning in found.warnings)


def test_a_native_format_is_said_nothing_of() -> None:
    found = budget("h100", "fp8")
    assert not found.reasons
    assert not any("weights run by" in warning for warning in found.warnings)


def test_knobs_that_would_not_start_on_the_card_are_not_offered() -> None:
    on_turing = {remedy.change for remedy in budget("t4", context=4096).remedies}
    assert "--quant awq-int4-g128" in on_turing
    assert "--kv-dtype fp8" not in on_turing
    assert "--kv-dtype fp8" in {remedy.change for remedy in budget("l4", context=4096).remedies}
    older = {remedy.change for remedy in budget("a100-40g", version="0.4.3").remedies}
    assert "--quant fp8" not in older
    assert "--quant fp8" in {remedy.change for remedy in budget("a100-40g", version="0.5.1").remedies}


def test_the_cache_is_asked_about_as_the_engine_resolved_it() -> None:
    found = budget("t4", "awq-int4-g128", kv_dtype="fp8")
    assert "--kv-dtype auto" in found.reasons[0]


def test_a_cut_between_blocks_starts() -> None:
    found = budget("h100", "fp8-block", layout=ParallelLayout(tensor=8))
    assert not any("cannot start" in reason for reason in found.reasons)
