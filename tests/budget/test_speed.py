"""The speed of a deployment: arithmetic by hand, and what must never turn round."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.budget.kv_cache import kv_format
from memplan.budget.links import all_reduce_s, all_to_all_s, link_between, pcie_bytes_per_s
from memplan.budget.pass_time import matrix_rates
from memplan.budget.speed import serving_speed, tokens_per_step
from memplan.catalog.gpus import find_gpu
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.speed import Draft, Efficiency, ServingSpeed, SpeedWorkload
from memplan.errors import UsageError
from memplan.pipeline import load_model, with_scheme
from memplan.records import replace

BARE = Efficiency(
    name="bare", compute_fraction=0.5, bandwidth_fraction=0.8, step_overhead_s=0.0, layer_overhead_s=0.0,
    link_fraction=1.0, link_latency_s=0.0,
)  # fmt: skip
REAL = Efficiency(
    name="real", compute_fraction=0.6, bandwidth_fraction=0.75, step_overhead_s=4e-4, layer_overhead_s=6e-6,
    sequence_overhead_s=1e-5, request_overhead_s=1e-2,
)  # fmt: skip


@lru_cache(maxsize=16)
def model(name: str, scheme: str | None = None) -> ModelSpec:
    return with_scheme(load_model(name, revision=None, offline=True, introspect="auto"), scheme)


def speed(
    name: str = "llama-3.1-70b",
    gpu: str = "h100",
    *,
    scheme: str | None = None,
    kv: str = "bfloat16",
    efficiency: Efficiency = REAL,
    offload: int = 0,
    draft: Draft | None = None,
    tp: int = 1,
    pp: int = 1,
    dp: int = 1,
    expert: bool = False,
    **workload: int,
) -> ServingSpeed:
    asked = SpeedWorkload(**{"prompt_tokens": 1024, "output_tokens": 512, **workload})  # type: ignore[arg-type]
    layout = ParallelLayout(tensor=tp, pipeline=pp, data=dp, expert=expert)
    return serving_speed(
        model(name, scheme), find_gpu(gpu), layout, kv_format(kv, DType.BF16), DType.BF16, asked, efficiency,
        offload_bytes=offload, draft=draft,
    )  # fmt: skip


def test_one_sequence_of_llama_70b_on_an_mi300x_waits_for_its_weights_and_its_cache() -> None:
    """139.006 GB of weights and 327,680 bytes for each of 1,280 tokens (and the next) at 80 % of 5.3 TB/s: 32.9 ms."""
    found = speed(gpu="mi300x", efficiency=BARE)
    weights_s = 139_006_066_688 / (0.8 * 5.3e12)
    cache_s = 327_680 * (1024 + 256 + 1) / (0.8 * 5.3e12)
    assert found.tpot_s == pytest.approx(weights_s + cache_s)
    assert found.tpot_s == pytest.approx(0.0329, abs=1e-4)
    assert found.bound["decode"] == "bandwidth"


def test_a_prompt_of_llama_70b_waits_for_its_multiplications() -> None:
    """1,024 tokens x 136.9 GFLOP, the head once, and 525,000 pairs of tokens in attention, at half of 1,307 TFLOP/s."""
    found = speed(gpu="mi300x", efficiency=BARE)
    flops = 1024 * 136_902_082_560 + 2_101_346_304 + 2 * 80 * 64 * 256 * (1024 * 1025 / 2)
    assert found.ttft_s == pytest.approx(flops / (0.5 * 1307e12))
    assert found.bound["prefill"] == "compute"


def test_the_ridge_of_dense_weights_is_rate_times_bytes_over_twice_the_bandwidth() -> None:
    found = speed(gpu="mi300x", efficiency=BARE)
    assert found.batch_at_ridge == math.ceil(0.5 * 1307e12 * 2 / (2 * 0.8 * 5.3e12))
    fp8 = speed(gpu="mi300x", scheme="fp8", efficiency=BARE)
    assert fp8.batch_at_ridge == pytest.approx(found.batch_at_ridge, rel=0.05)


def test_experts_move_the_ridge_up() -> None:
    dense, sparse = speed("qwen3-32b", efficiency=BARE), speed("qwen3-30b-a3b", efficiency=BARE)
    assert sparse.batch_at_ridge
    assert dense.batch_at_ridge
    assert sparse.batch_at_ridge > 4 * dense.batch_at_ridge


def test_weight_only_schemes_decode_faster_and_read_prompts_no_faster() -> None:
    plain, packed = speed(efficiency=BARE), speed(scheme="awq-int4-g128", efficiency=BARE)
    assert packed.step_s < plain.step_s / 3
    assert packed.ttft_s == pytest.approx(plain.ttft_s, rel=0.01)


def test_fp8_reads_prompts_faster_only_where_there_are_fp8_tensor_cores() -> None:
    assert speed(scheme="fp8", efficiency=BARE).ttft_s < 0.6 * speed(efficiency=BARE).ttft_s
    ampere = speed(gpu="a100-80g", scheme="fp8", efficiency=BARE).ttft_s
    assert ampere == pytest.approx(speed(gpu="a100-80g", efficiency=BARE).ttft_s, rel=0.01)


@pytest.mark.parametrize(
    "asked", [{}, {"tp": 4}, {"pp": 4, "concurrency": 2}, {"pp": 4, "concurrency": 64}, {"offload": 10**10}]
)
def test_lines_of_a_decode_step_sum_to_it(asked: dict[str, int]) -> None:
    found = speed(**{"concurrency": 8, **asked})  # type: ignore[arg-type]
    counted = sum(line.seconds for line in found.lines if line.phase == "decode" and line.counts)
    assert counted == pytest.approx(found.step_s)
    assert all(line.seconds > 0 and line.formula and line.provenance for line in found.lines)


@settings(max_examples=40)
@given(
    name=st.sampled_from(["llama-3.1-70b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b"]),
    tp=st.sampled_from([1, 2, 4, 8]),
    concurrency=st.integers(1, 512),
    prompt=st.integers(1, 8192),
    output=st.integers(2, 2048),
)
def test_more_load_is_never_quicker_for_one_request_nor_less_in_sum(
    name: str, tp: int, concurrency: int, prompt: int, output: int
) -> None:
    lengths = {"prompt_tokens": prompt, "output_tokens": output}
    fewer = speed(name, tp=tp, concurrency=concurrency, **lengths)
    more = speed(name, tp=tp, concurrency=concurrency + 1, **lengths)
    assert more.tpot_s >= fewer.tpot_s * (1 - 1e-9)
    assert more.decode_tokens_per_s >= fewer.decode_tokens_per_s * (1 - 1e-9)
    longer = speed(name, tp=tp, concurrency=concurrency, prompt_tokens=prompt + 512, output_tokens=output)
    assert longer.tpot_s >= fewer.tpot_s * (1 - 1e-9)
    assert longer.ttft_s >= fewer.ttft_s * (1 - 1e-9)


def test_a_faster_memory_or_a_higher_rate_never_slows() -> None:
    base = speed(tp=2, concurrency=32)
    for change in ({"compute_fraction": 0.9}, {"bandwidth_fraction": 0.9}, {"link_latency_s": 0.0}):
        better = speed(tp=2, concurrency=32, efficiency=replace(REAL, **change))  # type: ignore[arg-type]
        assert better.tpot_s <= base.tpot_s
        assert better.request_per_s >= base.request_per_s


def test_a_narrower_cache_only_helps_where_the_cache_is_read() -> None:
    assert speed(kv="fp8", concurrency=64).tpot_s < speed(concurrency=64).tpot_s
    assert speed(kv="fp8", concurrency=64).lines[0].seconds == speed(concurrency=64).lines[0].seconds


def test_more_ranks_read_faster_and_pay_for_it_on_the_link() -> None:
    one, eight = speed(tp=1), speed(tp=8)
    assert one.step_s / 8 < eight.step_s < one.step_s / 3
    assert {line.name for line in eight.lines} - {line.name for line in one.lines} == {"collectives"}


def test_tensor_parallelism_over_pcie_costs_prompts_more_than_over_nvlink() -> None:
    nvlink, pcie = find_gpu("a100-80g"), find_gpu("l40s")
    assert link_between(nvlink, 4, REAL).kind == "NVLink 3"
    assert link_between(pcie, 4, REAL).kind == "PCIe"
    lines = {line.name: line for line in speed(gpu="l40s", tp=4).lines if line.phase == "prefill"}
    assert lines["collectives"].seconds > lines["matrices: multiply"].seconds


def test_a_ring_moves_twice_the_message_less_one_part() -> None:
    link = link_between(find_gpu("h100"), 8, BARE)
    assert link.bytes_per_s == 450e9
    assert all_reduce_s(link, 8, 1e9) == pytest.approx(2 * 7 / 8 / 450)
    assert all_to_all_s(link, 8, 1e9) == pytest.approx(7 / 8 / 450)
    assert all_reduce_s(link, 1, 1e9) == 0.0


def test_bridged_pairs_go_over_pcie_from_the_third_card_on() -> None:
    gpu = find_gpu("rtx-3090")
    assert "bridge" in link_between(gpu, 2, REAL).kind
    assert link_between(gpu, 4, REAL).kind == "PCIe"
    assert pcie_bytes_per_s(gpu) == pytest.approx(31.5e9, rel=0.001)
    assert link_between(find_gpu("h100"), 16, REAL).kind == "network"


def test_a_pipeline_gives_one_sequence_nothing_and_a_full_one_all_stages() -> None:
    alone, piped = speed(efficiency=BARE), speed(efficiency=BARE, pp=4)
    assert piped.tpot_s == pytest.approx(alone.tpot_s, rel=0.01)
    assert piped.bubble_fraction == 0.75
    full = speed(efficiency=BARE, pp=4, concurrency=64)
    assert full.bubble_fraction == 0.0
    assert full.decode_tokens_per_s > 1.5 * speed(efficiency=BARE, concurrency=64).decode_tokens_per_s


def test_replicas_multiply_throughput_and_share_the_load() -> None:
    one, four = speed(tp=2, concurrency=16), speed(tp=2, dp=4, concurrency=64)
    assert four.decode_tokens_per_s == pytest.approx(4 * one.decode_tokens_per_s)
    assert four.tpot_s == pytest.approx(one.tpot_s)


def test_spread_experts_exchange_tokens_and_read_less_each() -> None:
    whole = speed("deepseek-v3", "h200", tp=8, concurrency=64, kv="bfloat16")
    spread = speed("deepseek-v3", "h200", tp=1, dp=8, expert=True, concurrency=512, kv="bfloat16")
    assert any(line.name == "collectives" for line in spread.lines)
    assert spread.decode_tokens_per_s > whole.decode_tokens_per_s


def test_a_shared_prefix_is_not_computed_again_but_still_read() -> None:
    cold = speed(prompt_tokens=8192, concurrency=8)
    warm = speed(prompt_tokens=8192, concurrency=8, shared_prefix_tokens=7168)
    assert warm.ttft_s < cold.ttft_s / 3
    assert warm.step_s == cold.step_s
    assert warm.decode_tokens_per_s > cold.decode_tokens_per_s


def test_weights_in_host_memory_make_every_step_wait_for_the_bus() -> None:
    """70 GB of 139 GB over PCIe 5.0 x16 at 80 % of 63 GB/s: 1.39 s a token, whatever the GPU."""
    found = speed(offload=70 * 10**9, efficiency=BARE)
    assert found.bound["decode"] == "offload"
    assert found.tpot_s == pytest.approx(70e9 / (0.8 * 63.0e9), rel=0.05)
    assert found.decode_tokens_per_s < 1
    batch = speed(offload=70 * 10**9, efficiency=BARE, concurrency=64)
    assert batch.decode_tokens_per_s > 20 * found.decode_tokens_per_s


def test_llama_cpp_computes_host_layers_on_the_host() -> None:
    host = replace(BARE, computes_on_host=True, host_bytes_per_s=50e9)
    found = speed(offload=70 * 10**9, efficiency=host)
    assert found.tpot_s == pytest.approx(70e9 / 50e9, rel=0.05)
    assert found.ttft_s == pytest.approx(speed(offload=70 * 10**9, efficiency=BARE).ttft_s)


def test_a_draft_yields_a_geometric_series_of_tokens() -> None:
    assert tokens_per_step(None) == 1.0
    assert tokens_per_step(Draft(spec=None, num_tokens=3, acceptance=0.0)) == 1.0
    assert tokens_per_step(Draft(spec=None, num_tokens=3, acceptance=1.0)) == 4.0
    assert tokens_per_step(Draft(spec=None, num_tokens=2, acceptance=0.5)) == 1.75


def test_a_small_draft_speeds_up_one_sequence_and_not_a_full_batch() -> None:
    draft = Draft(spec=model("llama-3.2-1b"), num_tokens=3, acceptance=0.7)
    alone, drafted = speed(tp=4), speed(tp=4, draft=draft)
    assert 1.4 < alone.tpot_s / drafted.tpot_s < tokens_per_step(draft)
    crowd = {"concurrency": 1024, "prompt_tokens": 64}
    gain = speed(tp=4, **crowd).step_s * tokens_per_step(draft) / speed(tp=4, draft=draft, **crowd).step_s
    assert gain < alone.tpot_s / drafted.tpot_s
    assert any(line.name == "draft" for line in drafted.lines)


def test_predictors_of_the_model_itself_pay_for_its_head() -> None:
    predictor = model("deepseek-v3").predictor()
    drafted = speed("deepseek-v3", "h200", tp=8, draft=Draft(spec=predictor, num_tokens=1, acceptance=0.8))
    plain = speed("deepseek-v3", "h200", tp=8)
    line = next(line for line in drafted.lines if line.name == "draft")
    assert 0.01 < line.seconds / plain.step_s < 0.3
    assert drafted.tpot_s < plain.tpot_s


def test_requests_that_start_together_wait_for_each_other() -> None:
    steady = speed(concurrency=64)
    layout, form = ParallelLayout(), kv_format("bfloat16", DType.BF16)
    workload = SpeedWorkload(prompt_tokens=1024, output_tokens=512, concurrency=64, arrival="together")
    together = serving_speed(model("llama-3.1-70b"), find_gpu("h100"), layout, form, DType.BF16, workload, REAL)
    assert together.ttft_s > 5 * steady.ttft_s
    assert together.request_per_s == steady.request_per_s


def test_requests_that_start_at_once_are_taken_in_one_after_another() -> None:
    together = {"concurrency": 9, "prompt_tokens": 2048, "output_tokens": 2}
    waits = speed("llama-3.1-8b", **together).ttft_s
    at_once = serving_speed(
        model("llama-3.1-8b"), find_gpu("h100"), ParallelLayout(), kv_format("bfloat16", DType.BF16), DType.BF16,
        SpeedWorkload(**together, arrival="together"), REAL,  # type: ignore[arg-type]
    ).ttft_s  # fmt: skip
    assert at_once > waits
    assert at_once > 5 * REAL.request_overhead_s


def test_strata_of_prompts_change_nothing_where_all_are_alike() -> None:
    asked = {"concurrency": 8, "prompt_tokens": 2048, "output_tokens": 256}
    rest = (model("llama-3.1-8b"), find_gpu("h100"), ParallelLayout(), kv_format("bfloat16", DType.BF16), DType.BF16)
    plain = serving_speed(*rest, SpeedWorkload(**asked), REAL)  # type: ignore[arg-type]
    same = serving_speed(*rest, SpeedWorkload(**asked, prompt_strata=(2048.0,) * 8, long_prompt_tokens=2048), REAL)  # type: ignore[arg-type]
    assert same.ttft_s == pytest.approx(plain.ttft_s)
    assert same.tpot_s == pytest.approx(plain.tpot_s)
    apart = serving_speed(*rest, SpeedWorkload(**asked, prompt_strata=(1024.0, 3072.0), long_prompt_tokens=3072), REAL)  # type: ignore[arg-type]
    assert apart.long_ttft_s > apart.ttft_s > plain.ttft_s


def test_a_card_without_a_tensor_rate_says_that_it_is_assumed() -> None:
    gpu = find_gpu("m5")
    rates, assumed = matrix_rates(gpu, DType.F16)
    assert assumed
    assert rates["16"] == 32 * (gpu.bandwidth_bytes_per_s or 0)
    found = speed("llama-3-8b", "m5")
    assert "assumed" in found.notes[0]
    assert {line.provenance for line in found.lines if line.name == "matrices: multiply"} == {"assumed"}


def test_a_million_requests_at_once_are_only_slow() -> None:
    found = speed(concurrency=10**6, prompt_tokens=1, output_tokens=1)
    assert found.tpot_s == 0.0
    assert math.isfinite(found.ttft_s)


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ({"prompt_tokens": 0}, "prompt tokens below one: 0"),
        ({"concurrency": 0}, "concurrency below one: 0"),
        ({"shared_prefix_tokens": 2000}, "a shared prefix of 2000 tokens in prompts of 1024"),
    ],
)
def test_workloads_that_cannot_be_are_refused(workload: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        speed(**workload)


def test_a_gpu_without_a_known_bandwidth_is_refused() -> None:
    unknown = replace(find_gpu("h100"), bandwidth_bytes_per_s=None)
    workload = SpeedWorkload(prompt_tokens=1, output_tokens=1)
    with pytest.raises(UsageError, match="the memory bandwidth of h100 is not known"):
        serving_speed(
            model("llama-3-8b"), unknown, ParallelLayout(), kv_format("auto", DType.BF16), DType.BF16, workload, REAL
        )
