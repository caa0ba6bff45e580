"""What is written, read back, is what was budgeted: the same lines, the same cache, the same verdict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written import emitted, read_back, terms

from memplan.errors import DoesNotFit, UsageError

CASES: list[dict[str, Any]] = [
    {"model": "llama-8b", "gpu": "l40s"},
    {"model": "llama-8b", "gpu": "rtx-4090", "context": "16k", "concurrency": "4"},
    {"model": "llama-8b", "gpu": "t4x2", "context": "4096"},
    {"model": "llama-70b", "gpu": "a100-80g"},
    {"model": "llama-70b", "gpu": "h100x4", "context": "32k", "concurrency": "16", "kv_dtype": "fp8"},
    {"model": "llama-70b", "gpu": "h100", "quant": "awq-int4-g128", "context": "8k"},
    {"model": "qwen3-8b", "gpu": "l4", "context": "8192", "eager": True},
    {"model": "qwen3-30b-a3b", "gpu": "h100x2", "context": "32k", "ep": True},
    {"model": "mixtral-8x7b", "gpu": "a100-80gx2", "context": "16k", "max_num_seqs": "64"},
    {"model": "deepseek-v3", "gpu": "h200x8", "context": "64k"},
    {"model": "gemma-3-27b", "gpu": "h100", "context": "32k", "limit_mm": "image=1,video=0"},
    {"model": "qwen2-vl-7b", "gpu": "l40s", "context": "16k"},
    {"model": "gpt-oss-20b", "gpu": "h100", "context": "65536"},
    {"model": "llama-8b", "gpu": "l40s", "sharing": 2, "context": "8k"},
    {"model": "llama-8b", "gpu": "l40s", "prefix_caching": False, "max_num_batched_tokens": "4096", "context": "16k"},
    {"model": "llama-8b", "gpu": "l40s", "max_loras": 4, "max_lora_rank": 32, "context": "16k"},
    {"model": "mistral-7b", "gpu": "a10g", "context": "8192", "gpu_memory_utilization": 0.85, "block_size": 32},
    {"model": "qwen2.5-7b", "gpu": "a100-40g", "context": "32k", "concurrency": "8", "cpu_offload": "4GiB"},
]
ENGINES = (
    *("vllm", "vllm@0.8.5", "vllm@0.10.2", "vllm@0.16.0", "vllm@0.20.2"),
    *("sglang", "sglang@0.5.10", "tensorrt-llm", "tensorrt-llm@1.0.0"),
)
# What no such release starts: there is nothing to read back.
NOT_STARTED = (
    ("llama-8b", "t4x2", "tensorrt-llm"),
    ("llama-8b", "t4x2", "tensorrt-llm@1.0.0"),
    ("gpt-oss-20b", "h100", "vllm@0.8.5"),
)


def named(case: dict[str, Any]) -> str:
    return "-".join(str(value) for value in case.values())


@pytest.fixture(autouse=True)
def _no_project_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_config_gives_its_budget_back(case: dict[str, Any], engine: str, tmp_path: Path) -> None:
    if engine.startswith("tensorrt-llm") and "cpu_offload" in case:
        pytest.skip("it has no such option, and says so")
    if engine == "vllm@0.8.5" and "sharing" in case:
        pytest.skip("that release counts what other programs hold as its own: nothing fits")
    if not engine.startswith("vllm") and "sharing" in case:
        pytest.skip("what the other engine holds is computed before the checks")
    if (case["model"], case["gpu"], engine) in NOT_STARTED:
        with pytest.raises(UsageError, match="cannot start"):
            emitted({**case, "engine": engine, "offline": True})
        return
    setup, emission = emitted({**case, "engine": engine, "offline": True})
    assert terms(read_back(setup, emission, tmp_path)) == terms(setup.budget)


@pytest.mark.parametrize("quant", [None, "gguf:q4_k_m", "gguf:q8_0"])
@pytest.mark.parametrize("case", CASES[:3] + CASES[6:7] + CASES[16:], ids=named)
def test_llama_server_arguments_give_their_budget_back(case: dict[str, Any], quant: str | None, tmp_path: Path) -> None:
    names = ("model", "gpu", "context", "concurrency")
    options = {name: value for name, value in case.items() if name in names}
    options |= {"quant": quant} if quant else {}
    setup, emission = emitted({**options, "engine": "llama.cpp", "offline": True})
    again = read_back(setup, emission, tmp_path)
    assert terms(again)["lines"] == terms(setup.budget)["lines"]
    assert again.verdict == setup.budget.verdict


@pytest.mark.parametrize("case", CASES[:6] + CASES[10:12] + CASES[14:], ids=named)
def test_a_script_of_vllms_class_gives_its_budget_back(case: dict[str, Any], tmp_path: Path) -> None:
    setup, emission = emitted({**case, "engine": "vllm", "offline": True}, "vllm-python")
    assert terms(read_back(setup, emission, tmp_path)) == terms(setup.budget)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quant": "bnb-nf4"},
        {"quant": "bnb-nf4-dq", "tp": 2},
        {"quant": "bnb-int8", "concurrency": "3"},
        {"set": ["num_beams=4", "max_new_tokens=512", "prefill_chunk_size=1k"]},
        {"set": ["cache_implementation=quantized", "cache_nbits=2", "cache_group_size=32"]},
        {"set": ["max_memory=20GiB", "cpu_memory=40GiB", "attn_implementation=flash_attention_2"]},
        {"set": ["max_memory=18GiB/30GiB", "device_map=sequential"], "tp": 2},
        {"set": ["cache_implementation=none"], "engine": "transformers@4.57.0"},
        {"kv_dtype": "fp8"},
    ],
    ids=str,
)
def test_a_script_of_transformers_gives_its_budget_back(options: dict[str, Any], tmp_path: Path) -> None:
    plain = {"model": "llama-8b", "gpu": "l40s", "engine": "transformers", "context": "8k", "offline": True}
    setup, emission = emitted({**plain, **options})
    assert terms(read_back(setup, emission, tmp_path)) == terms(setup.budget)


@settings(max_examples=40)
@given(
    model=st.sampled_from(["llama-8b", "llama-70b", "qwen3-8b", "qwen3-32b", "mixtral-8x7b", "gemma-2-9b", "phi-4"]),
    gpu=st.sampled_from(["l4", "a10g", "l40s", "a100-40g", "a100-80g", "h100", "h200", "rtx-4090", "h100x2", "l40sx4"]),
    context=st.sampled_from([None, "2048", "4k", "8K"]),
    concurrency=st.sampled_from([None, "3", "17"]),
    engine=st.sampled_from(["vllm", "vllm@0.12.0", "sglang", "tensorrt-llm", "llama.cpp", "transformers"]),
)
def test_what_is_written_as_fitting_is_never_read_as_not_fitting(
    model: str, gpu: str, context: str | None, concurrency: str | None, engine: str, tmp_path: Path
) -> None:
    options = {"model": model, "gpu": gpu, "context": context, "concurrency": concurrency, "engine": engine}
    try:
        setup, emission = emitted({name: value for name, value in options.items() if value} | {"offline": True})
    except DoesNotFit:
        return
    again = read_back(setup, emission, tmp_path)
    assert again.verdict == setup.budget.verdict != "does_not_fit"
    assert terms(again) == terms(setup.budget)


@pytest.mark.parametrize("engine", ["vllm", "vllm@0.10.2", "sglang", "tensorrt-llm"])
def test_at_the_largest_concurrency_one_more_does_not_fit(engine: str, tmp_path: Path) -> None:
    setup, emission = emitted({"model": "llama-8b", "gpu": "l40s", "context": "16k", "engine": engine, "offline": True})
    assert setup.budget.kv.max_concurrency is not None
    most = math.floor(setup.budget.kv.max_concurrency)
    at_most = read_back(setup, emission, tmp_path, concurrency=str(most))
    one_more = read_back(setup, emission, tmp_path, concurrency=str(most + 1))
    assert at_most.verdict in ("fits", "tight")
    assert one_more.shortfall_bytes > 0 or one_more.verdict != "fits"
    assert one_more.kv.needed_bytes > one_more.group_bytes("kv_cache") >= at_most.kv.needed_bytes


@pytest.mark.parametrize("engine", ["llama.cpp", "transformers"])
def test_where_the_cache_is_as_large_as_asked_one_more_than_the_most_is_not_written_for_the_same_gpu(
    engine: str,
) -> None:
    options = {"model": "llama-8b", "gpu": "l40s", "context": "16k", "engine": engine, "offline": True}
    options |= {"quant": "gguf:q8_0"} if engine == "llama.cpp" else {}
    most = emitted(options)[0].budget.kv.max_concurrency
    assert most is not None
    at_most = emitted({**options, "concurrency": str(math.floor(most))})[0]
    assert at_most.budget.verdict in ("fits", "tight")
    assert at_most.budget.num_gpus == 1
    assert gpus_written_for({**options, "concurrency": str(math.floor(most) + 1)}) != 1


def gpus_written_for(options: dict[str, Any]) -> int | None:
    """For how many GPUs a setup is written; None when it is refused."""
    try:
        return emitted(options)[0].budget.num_gpus
    except UsageError:
        return None
