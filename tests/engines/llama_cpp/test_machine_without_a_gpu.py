"""A machine without a GPU: its own memory is what the budget is of, and must hold everything."""

from __future__ import annotations

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ServingSettings, Workload
from memplan.engines.registry import load_engine
from memplan.errors import UsageError
from memplan.pipeline import load_model, with_scheme

MODEL = load_model("qwen3-8b", revision=None, offline=True, introspect="auto")


def budget(
    gpu: str = "cpu:32g", scheme: str = "gguf:q4_k_m", context: int = 8192, concurrency: int = 1
) -> MemoryBudget:
    asked = ServingSettings(workload=Workload(context_tokens=context, concurrency=concurrency))
    return load_engine("llama.cpp").estimate(with_scheme(MODEL, scheme), find_gpu(gpu), asked, None)


def test_everything_lies_in_the_memory_of_the_machine() -> None:
    found = budget()
    names = [line.name for line in found.lines]
    assert "process and output buffer" in names
    assert not any("context" in name for name in names)
    assert found.num_gpus == 1
    assert found.kv.needed_bytes == 36 * 2 * 8 * 128 * 2 * 8192
    assert found.verdict == "fits"
    assert found.used_bytes == pytest.approx(found.host_bytes - 8 * 1024**3, rel=0.01)  # but for --cache-ram


def test_weights_that_are_too_large_do_not_fit() -> None:
    small = budget("raspberry-pi-5:4g")
    assert small.verdict == "does_not_fit"
    assert small.shortfall_bytes > 1e9
    assert "do not fit in the memory" in small.reasons[0]


def test_room_and_longest_context_are_those_that_still_fit() -> None:
    found = budget("raspberry-pi-5:8g")
    longest = found.kv.max_context_tokens
    assert longest
    assert budget("raspberry-pi-5:8g", context=longest).verdict != "does_not_fit"
    assert budget("raspberry-pi-5:8g", context=longest + 2048).verdict != "fits"
    assert found.kv.max_concurrency == pytest.approx(longest / 8192, abs=0.05)


def test_prompts_kept_beside_it_are_told_of_when_they_fill_the_memory() -> None:
    assert any("--cache-ram" in note and "keeps them within it" in note for note in budget("cpu:8g").warnings)
    assert not any("keeps them within it" in note for note in budget("cpu:64g").warnings)


def test_a_machine_of_another_size_is_named_by_its_memory() -> None:
    assert find_gpu("cpu:32g").memory_bytes == round(32 * 1024 * 0.97 - 1024) * 1024**2
    with pytest.raises(UsageError, match="unknown slice of cpu: `33g`"):
        find_gpu("cpu:33g")


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_engines_for_gpus_name_the_one_that_runs_there(engine: str) -> None:
    with pytest.raises(UsageError, match="does not run on cpu:32g") as found:
        load_engine(engine).estimate(MODEL, find_gpu("cpu:32g"), ServingSettings(), None)
    assert "llama.cpp" in str(found.value.hint)
