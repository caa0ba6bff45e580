"""What a pass computes and moves, against arithmetic done by hand on published shapes."""

from __future__ import annotations

import math
from functools import lru_cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.budget.kv_cache import kv_format
from memplan.budget.traffic import (
    INDEXED_TOKENS,
    attention_flops,
    cache_read_bytes,
    distinct_experts,
    experts_read_bytes,
    looked_at,
    matrix_flops,
    matrix_rate,
    model_passes,
    weights_read_bytes,
)
from memplan.domain.attention import ChunkedLocal, CrossAttention, FullAttention, LatentAttention, SlidingWindow
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.pipeline import load_model, with_scheme

ONE = ParallelLayout()
BF16 = kv_format("bfloat16", DType.BF16)


@lru_cache(maxsize=16)
def model(name: str, scheme: str | None = None) -> ModelSpec:
    return with_scheme(load_model(name, revision=None, offline=True, introspect="auto"), scheme)


# Llama-3.1-70B: 80 layers, hidden 8192, 64 query and 8 key-value heads of 128, MLP 28672, vocabulary 128256.
ATTENTION = 8192 * (8192 + 2 * 1024 + 8192)
LAYER = ATTENTION + 3 * 8192 * 28672
HEAD = 128256 * 8192
NORMS = 80 * 2 * 8192 + 8192


def test_a_decode_step_of_llama_70b_reads_every_weight_but_the_embedding_once() -> None:
    passes = model_passes(model("llama-3.1-70b"), ONE, DType.BF16)
    by_hand = 2 * (80 * LAYER + HEAD + NORMS)
    assert by_hand == 139_006_066_688
    assert weights_read_bytes(passes, 1) == weights_read_bytes(passes, 500) == by_hand


def test_a_token_of_llama_70b_takes_two_operations_for_every_weight_of_a_matrix() -> None:
    flops = matrix_flops(model_passes(model("llama-3.1-70b"), ONE, DType.BF16), tokens=1, sampled=1)
    assert sum(flops.values()) == 2 * (80 * LAYER + HEAD)
    assert math.isclose(sum(flops.values()), 139.0e9, rel_tol=1e-3)


def test_a_prompt_goes_through_the_head_once_and_not_once_a_token() -> None:
    passes = model_passes(model("llama-3.1-70b"), ONE, DType.BF16)
    prompt = sum(matrix_flops(passes, tokens=1000, sampled=1).values())
    assert prompt == 1000 * 2 * 80 * LAYER + 2 * HEAD


def test_a_step_of_llama_70b_reads_327680_bytes_of_cache_for_every_token_of_context_and_writes_one_more() -> None:
    passes = model_passes(model("llama-3.1-70b"), ONE, DType.BF16)
    assert 80 * 8 * (128 + 128) * 2 == 327_680
    assert cache_read_bytes(passes, BF16, 4096) == 327_680 * 4097
    assert cache_read_bytes(passes, kv_format("fp8", DType.BF16), 4096) == 327_680 * 4097 / 2


def test_attention_of_one_token_multiplies_every_query_head_with_every_token_before_it() -> None:
    passes = model_passes(model("llama-3.1-70b"), ONE, DType.BF16)
    assert attention_flops(passes, 4095, 4096) == 2 * 80 * 64 * (128 + 128) * 4096


def test_attention_over_a_prompt_is_the_sum_over_its_tokens() -> None:
    passes = model_passes(model("llama-3.1-70b"), ONE, DType.BF16)
    assert attention_flops(passes, 0, 100) == sum(attention_flops(passes, at, at + 1) for at in range(100))


def test_eight_ranks_read_an_eighth_each_of_what_divides() -> None:
    whole = model_passes(model("llama-3.1-70b"), ONE, DType.BF16)
    rank = model_passes(model("llama-3.1-70b"), ParallelLayout(tensor=8), DType.BF16)
    assert weights_read_bytes(rank, 1) == (weights_read_bytes(whole, 1) - 2 * NORMS) / 8 + 2 * NORMS
    assert cache_read_bytes(rank, BF16, 1000) == cache_read_bytes(whole, BF16, 1000) / 8
    assert sum(matrix_flops(rank, 1, 1).values()) == sum(matrix_flops(whole, 1, 1).values()) / 8


def test_a_layer_has_two_all_reduces_and_the_embedding_one() -> None:
    assert model_passes(model("llama-3.1-70b"), ONE, DType.BF16).reductions == 161


def test_one_token_touches_its_own_experts_and_many_touch_all() -> None:
    assert distinct_experts(256, 8, 1) == pytest.approx(8)
    assert distinct_experts(256, 8, 32) == pytest.approx(256 * (1 - (31 / 32) ** 32))
    assert distinct_experts(256, 8, 32) == pytest.approx(163.3, abs=0.1)
    assert distinct_experts(256, 8, 256) == pytest.approx(255.9, abs=0.05)
    assert distinct_experts(8, 8, 1) == 8


@given(experts=st.integers(1, 512), chosen=st.integers(1, 16), tokens=st.integers(1, 4096))
def test_experts_touched_lie_between_one_tokens_and_all(experts: int, chosen: int, tokens: int) -> None:
    chosen = min(chosen, experts)
    touched = distinct_experts(experts, chosen, tokens)
    assert min(experts, chosen) - 1e-6 <= touched <= experts + 1e-6
    assert touched <= distinct_experts(experts, chosen, tokens + 1) + 1e-6


def test_a_single_token_of_mixtral_reads_a_quarter_of_its_experts() -> None:
    passes = model_passes(model("mixtral-8x7b"), ONE, DType.BF16)
    experts = 2 * 32 * 8 * 3 * 4096 * 14336
    assert experts_read_bytes(passes, 1) == pytest.approx(experts / 4)
    flops = sum(matrix_flops(passes, 1, 1).values())
    assert flops == pytest.approx(2 * (12_879_925_248 - 32000 * 4096), rel=1e-4)


def test_expert_parallel_ranks_hold_whole_experts_over_all_replicas() -> None:
    spec = model("deepseek-v3")
    whole = model_passes(spec, ONE, DType.BF16).experts[0]
    spread = model_passes(spec, ParallelLayout(tensor=1, data=8, expert=True), DType.BF16).experts[0]
    assert spread.size_bytes == pytest.approx(whole.size_bytes / 8)
    assert spread.token_flops == pytest.approx(whole.token_flops / 8)


def test_latent_attention_reads_one_latent_whatever_the_heads_and_the_ranks() -> None:
    spec = model("deepseek-v3")
    for ranks in (1, 8):
        passes = model_passes(spec, ParallelLayout(tensor=ranks), DType.BF16)
        assert cache_read_bytes(passes, BF16, 1000) == 61 * (512 + 64) * 2 * 1001


def test_latent_attention_computes_on_latents_in_a_step_and_on_full_keys_in_a_prompt() -> None:
    passes = model_passes(model("deepseek-v3"), ONE, DType.BF16)
    assert attention_flops(passes, 999, 1000) == 2 * 61 * 128 * (2 * 512 + 64) * 1000
    assert attention_flops(passes, 999, 1000, expanded=True) == 2 * 61 * 128 * (192 + 128) * 1000


def test_windows_stop_growing_and_full_layers_do_not() -> None:
    passes = model_passes(model("gpt-oss-120b"), ONE, DType.BF16)
    token = 8 * (64 + 64) * 2
    assert cache_read_bytes(passes, BF16, 100) == 36 * token * 101
    assert cache_read_bytes(passes, BF16, 10_000) == 18 * token * (128 + 1) + 18 * token * 10_001


def test_states_are_read_and_written_whatever_the_context() -> None:
    passes = model_passes(model("mamba-2.8b"), ONE, DType.F16)
    assert cache_read_bytes(passes, BF16, 10) == cache_read_bytes(passes, BF16, 100_000) > 0
    assert attention_flops(passes, 0, 10) == 10 * attention_flops(passes, 99_999, 100_000)


def test_layers_that_share_a_cache_read_it_all_the_same() -> None:
    spec = model("gemma-4-e2b")
    passes = model_passes(spec, ONE, DType.BF16)
    read = sum(group.num_layers for group in passes.attention if isinstance(group.caches[0], FullAttention))
    own = sum(isinstance(cache, FullAttention) for layer in spec.layers for cache in layer.caches)
    assert read > own


@pytest.mark.parametrize(
    ("cache", "tokens", "expected"),
    [
        (FullAttention(1, 1, 1), 4, 1 + 2 + 3 + 4),
        (SlidingWindow(1, 1, 1, 2), 4, 1 + 2 + 2 + 2),
        (ChunkedLocal(1, 1, 1, 3), 5, 1 + 2 + 3 + 1 + 2),
        (CrossAttention(1, 1, 1, 7), 3, 21),
        (LatentAttention(1, 1, 1, 1, 1), 3, 6),
    ],
)
def test_pairs_of_tokens_are_counted_as_each_kind_of_attention_sees_them(
    cache: FullAttention, tokens: int, expected: int
) -> None:
    assert looked_at(cache, 0, tokens) == expected
    assert looked_at(cache, 1, tokens) + looked_at(cache, 0, 1) == expected


def test_an_indexer_bounds_what_the_attention_behind_it_looks_at() -> None:
    latent = LatentAttention(512, 64, 128, 192, 128)
    assert looked_at(latent, 99_999, 100_000, indexed=True) == INDEXED_TOKENS
    sparse = model_passes(model("deepseek-v3.2"), ONE, DType.BF16)
    dense = model_passes(model("deepseek-v3"), ONE, DType.BF16)
    assert cache_read_bytes(sparse, BF16, 100_000) < cache_read_bytes(dense, BF16, 100_000) / 4


@pytest.mark.parametrize(
    ("scheme", "rate", "packed"),
    [("none", "16", False), ("fp8", "fp8", False), ("w8a8-int8", "int8", False), ("nvfp4", "fp4", False),
     ("mxfp4", "mxfp4", False), ("awq-int4-g128", "16", True), ("w8a16-int8", "16", False),
     ("gguf:q4_k_m", "16", True)],
)  # fmt: skip
def test_a_scheme_multiplies_in_the_arithmetic_of_its_activations(scheme: str, rate: str, packed: bool) -> None:
    spec = model("llama-3.1-70b", scheme)
    matrix = next(tensor for tensor in spec.layers[0].tensors if tensor.linear)
    assert matrix_rate(matrix) == rate
    assert (model_passes(spec, ONE, DType.BF16).packed_share > 0.5) is packed


def test_fp8_weights_are_half_as_many_bytes_and_as_many_operations() -> None:
    plain = model_passes(model("llama-3.1-70b"), ONE, DType.BF16)
    narrow = model_passes(model("llama-3.1-70b", "fp8"), ONE, DType.BF16)
    assert narrow.dense_bytes == pytest.approx(plain.dense_bytes / 2, rel=0.001)
    assert narrow.head_bytes == plain.head_bytes
    assert sum(matrix_flops(narrow, 1, 1).values()) == sum(matrix_flops(plain, 1, 1).values())


def test_a_tied_head_is_read_from_the_embedding() -> None:
    passes = model_passes(model("llama-3.2-1b"), ONE, DType.BF16)
    assert passes.head_bytes == 2 * 128256 * 2048
