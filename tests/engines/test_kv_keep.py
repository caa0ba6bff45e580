"""A cache that is pruned: what is needed, how many requests have room and how long one may be tell the same."""

from __future__ import annotations

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ServingSettings, Workload
from memplan.engines.registry import load_engine
from memplan.introspect.resolve import resolve_model


def kept(engine: str, fraction: float) -> MemoryBudget:
    workload = Workload(context_tokens=32768)
    settings = ServingSettings(workload=workload, kv_keep_fraction=fraction)
    spec = resolve_model("Qwen/Qwen3-8B", offline=True)
    return load_engine(engine).estimate(spec, find_gpu("l4"), settings, None)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm"])
def test_half_a_cache_has_room_for_twice_the_requests_and_twice_the_length(engine: str) -> None:
    whole, half = kept(engine, 1.0).kv, kept(engine, 0.5).kv
    assert half.needed_bytes == pytest.approx(whole.needed_bytes / 2, rel=0.02)
    assert whole.max_concurrency is not None
    assert half.max_concurrency == pytest.approx(2 * whole.max_concurrency, rel=0.02)
    assert whole.max_context_tokens is not None
    assert half.max_context_tokens == pytest.approx(min(2 * whole.max_context_tokens, 40960), rel=0.02)
    assert half.capacity_tokens == whole.capacity_tokens


def test_llama_cpp_says_that_it_prunes_nothing() -> None:
    whole, half = kept("llama.cpp", 1.0), kept("llama.cpp", 0.5)
    assert half.kv == whole.kv
    assert [warning for warning in half.warnings if warning not in whole.warnings] == [
        "--kv-keep changes nothing: llama.cpp reserves the whole context and prunes none of it"
    ]
