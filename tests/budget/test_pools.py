"""Prefill and decode apart: which pool limits, what a prompt waits for, and what its cache takes to move."""

from __future__ import annotations

import pytest
from test_speed import BARE, model, speed

from memplan.budget.kv_cache import kv_format
from memplan.budget.pools import Pool, busy_fraction, pooled_speed, queue_s, transfer_between
from memplan.catalog.gpus import find_gpu
from memplan.domain.dtypes import DType
from memplan.records import replace

ONE = speed(tp=2, output_tokens=1, prompt_tokens=4096)
DECODE = speed(tp=4, concurrency=32, prompt_tokens=4096, shared_prefix_tokens=4096, output_tokens=256)


def pool(request_per_s: float) -> Pool:
    return Pool(one=ONE, replicas=2, request_per_s=request_per_s, transfer_s=0.004, link="NVLink")


def test_the_slower_pool_limits_and_a_prefill_pool_is_never_full() -> None:
    scarce, ample = pooled_speed(pool(1.0), DECODE, 256), pooled_speed(pool(1000.0), DECODE, 256)
    assert scarce.request_per_s == pytest.approx(0.85)
    assert scarce.decode_tokens_per_s == pytest.approx(0.85 * 256)
    assert ample.request_per_s == pytest.approx(DECODE.request_per_s)


def test_tokens_wait_for_no_prompt_and_first_tokens_for_the_queue_and_the_transfer() -> None:
    shared = speed(tp=4, concurrency=32, prompt_tokens=4096, output_tokens=256)
    found = pooled_speed(pool(2 * DECODE.request_per_s), DECODE, 256)
    assert found.tpot_s == DECODE.tpot_s < shared.tpot_s
    queue = queue_s(pool(2 * DECODE.request_per_s), found.request_per_s)
    assert found.ttft_s == pytest.approx(ONE.ttft_s + queue + 0.004 + DECODE.step_s / 2)
    assert busy_fraction(pool(2 * DECODE.request_per_s), found.request_per_s) == pytest.approx(0.5)
    assert queue == pytest.approx(0.5 * 2 / (2 * DECODE.request_per_s))
    assert found.low_ttft_s < found.ttft_s < found.high_ttft_s


def test_a_cache_of_4096_tokens_of_llama_70b_crosses_nvlink_in_three_milliseconds() -> None:
    """327,680 bytes a token, half of them on each of two ranks, at 450 GB/s one way."""
    form, gpu = kv_format("bfloat16", DType.BF16), find_gpu("h100")
    seconds, link = transfer_between(model("llama-3.1-70b"), gpu, form, 4096, (2, 4), 8, BARE)
    assert link == gpu.interconnect
    assert seconds == pytest.approx(327_680 * 4096 / 2 / 450e9)
    far, network = transfer_between(model("llama-3.1-70b"), gpu, form, 4096, (2, 4), 16, replace(BARE))
    assert (network, far > seconds) == ("network", True)
