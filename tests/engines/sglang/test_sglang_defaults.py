"""SGLang's defaults by release and by GPU, against values that its logs printed or its source computes."""

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.catalog.rules import load_rules
from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ParallelLayout, ServingSettings, Workload
from memplan.engines.sglang.defaults import capture_sizes, chunk_tokens, graph_batch, prefill_capture_sizes
from memplan.engines.sglang.engine import SGLANG
from memplan.errors import UsageError
from memplan.introspect.resolve import resolve_model

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def estimate(model: str, gpu: str, version: str | None = None, tensor: int = 1, **options: object) -> MemoryBudget:
    settings = ServingSettings(layout=ParallelLayout(tensor=tensor), engine_options=options)
    return SGLANG.estimate(resolve_model(model, offline=True), find_gpu(gpu), settings, version)


def refusal(**options: object) -> str:
    with pytest.raises(UsageError) as caught:
        estimate(LLAMA, "h100", **options)
    return f"{caught.value}; {caught.value.hint}"


@pytest.mark.parametrize(
    ("gpu", "version", "tensor", "fraction"),
    [
        ("a100-40g", "0.4.3", 1, 0.88),
        ("l4", "0.4.3", 4, 0.85),
        ("rtx-4090", "0.4.9", 1, 0.879),
        ("h100", "0.5.8", 1, 0.835),
        ("b200", "0.5.10", 1, 0.854),
        ("h100", "0.5.18", 1, 0.83),
    ],
)
def test_the_default_fraction_is_the_printed_one(gpu: str, version: str, tensor: int, fraction: float) -> None:
    assert estimate(LLAMA, gpu, version, tensor).settings["mem_fraction_static"] == pytest.approx(fraction, abs=0.0051)


def test_steps_and_captured_batches_follow_the_gpu() -> None:
    rules = load_rules("sglang", "0.5.10")
    assert chunk_tokens(24_564, rules) == 2048
    assert chunk_tokens(81_559, rules) == 8192
    assert chunk_tokens(183_359, rules) == 16_384
    assert graph_batch(24_564, 1, rules) == 24
    assert graph_batch(81_559, 4, rules) == 512


def test_captured_sizes_include_the_largest() -> None:
    rules = load_rules("sglang", "0.5.10")
    assert capture_sizes(24, rules, speculative=False) == 7
    assert capture_sizes(5, rules, speculative=False) == 4
    assert prefill_capture_sizes(32) == 8


def test_a_fraction_of_its_own_wins_over_the_common_one() -> None:
    spec, gpu = resolve_model(LLAMA, offline=True), find_gpu("h100")
    common = ServingSettings(gpu_memory_utilization=0.7)
    own = ServingSettings(gpu_memory_utilization=0.7, engine_options={"mem-fraction-static": 0.6})
    assert SGLANG.estimate(spec, gpu, common, None).settings["mem_fraction_static"] == 0.7
    assert SGLANG.estimate(spec, gpu, own, None).settings["mem_fraction_static"] == 0.6


def test_attention_groups_hold_whole_attention_weights_and_a_cache_each() -> None:
    plain = estimate("deepseek-ai/DeepSeek-V3", "h200", tensor=8)
    grouped = estimate("deepseek-ai/DeepSeek-V3", "h200", tensor=8, dp_size=8, enable_dp_attention=True)
    sizes = [{line.name: line.size_bytes for line in budget.lines}["weights: attention"] for budget in (plain, grouped)]
    assert sizes[1] > 4 * sizes[0]
    assert grouped.kv.capacity_tokens is not None
    assert plain.kv.capacity_tokens is not None
    assert grouped.kv.capacity_tokens < plain.kv.capacity_tokens
    assert grouped.num_gpus == plain.num_gpus == 8


def test_mxfp4_experts_are_padded_where_the_kernels_ask_for_it() -> None:
    experts = [
        {line.name: line.size_bytes for line in estimate("openai/gpt-oss-120b", gpu, version).lines}[
            "weights: routed experts"
        ]
        for gpu, version in (("h100", "0.5.10"), ("b200", "0.5.10"), ("b200", "0.5.20"))
    ]
    assert experts[1] == pytest.approx(experts[0] * (3072 / 2880) ** 2, rel=0.001)
    assert experts[2] == pytest.approx(experts[0] * (2944 / 2880) ** 2, rel=0.001)


def test_bad_options_give_one_line_with_the_remedy() -> None:
    assert "mem_fraction_static is `1.5`" in refusal(mem_fraction_static=1.5)
    assert "page_size is `0`" in refusal(page_size=0)
    assert "did you mean mem_fraction_static" in refusal(mem_fraction_statik=0.8)
    assert "does not divide into 3 attention groups" in refusal(enable_dp_attention=True, dp_size=3)
    assert all("\n" not in refusal(**bad) for bad in ({"mem_fraction_static": "high"}, {"disable_cuda_graph": 1}))


def test_a_gpu_that_sglang_does_not_run_on_is_refused() -> None:
    with pytest.raises(UsageError, match="does not run on"):
        estimate(LLAMA, "m3-max-128g")


def test_options_that_memory_does_not_depend_on_are_named() -> None:
    budget = estimate(LLAMA, "h100", schedule_policy="lpm")
    assert any("schedule_policy" in warning for warning in budget.warnings)


def test_the_lines_sum_to_what_is_used() -> None:
    budget = estimate(LLAMA, "h100")
    assert sum(line.size_bytes for line in budget.lines) == budget.used_bytes
    assert all(line.low_bytes <= line.size_bytes <= line.high_bytes for line in budget.lines)


def test_more_context_or_users_never_fit_better() -> None:
    spec, gpu = resolve_model(LLAMA, offline=True), find_gpu("rtx-4090")
    order = ("fits", "tight", "does_not_fit")
    for axis in ("context_tokens", "concurrency"):
        base = {"context_tokens": 4096, "concurrency": 2}
        seen = [
            SGLANG.estimate(spec, gpu, ServingSettings(workload=Workload(**{**base, axis: size})), None).verdict
            for size in (1, 2, 16, 256, 4096)
        ]
        assert [order.index(verdict) for verdict in seen] == sorted(order.index(verdict) for verdict in seen)
