"""What holds for every budget, whatever the model, the card and the engine."""

from __future__ import annotations

import json
from math import floor

from hypothesis import assume, given
from hypothesis import strategies as st
from questions import ENGINES, SCHEMES, Case, cases, gpu_of, model_of

from memplan.domain.budget import MemoryBudget
from memplan.domain.serving import ParallelLayout
from memplan.engines.registry import load_engine
from memplan.records import replace
from memplan.report.json_report import estimate_json

GROUPS = ("weights", "activation_peak", "cuda_graph", "non_torch", "kv_cache", "outside_budget")
PAGED = tuple(engine for engine in ENGINES if engine.startswith(("vllm", "sglang", "tensorrt")))


def available_bytes(budget: MemoryBudget) -> int:
    """What the cache has on one GPU."""
    available = budget.extra.get("kv_available_bytes", budget.group_bytes("kv_cache"))
    assert isinstance(available, int)
    return available


def demand_bytes(budget: MemoryBudget) -> int:
    """What the question needs on the fullest GPU: everything but the cache's spare room."""
    return budget.used_bytes - budget.group_bytes("kv_cache") + budget.kv.needed_bytes


@given(cases())
def test_lines_sum_to_the_total_and_lie_in_their_intervals(case: Case) -> None:
    budget = case.ask()
    assert budget.used_bytes == sum(budget.group_bytes(group) for group in GROUPS)
    for line in budget.lines:
        assert isinstance(line.size_bytes, int)
        assert line.low_bytes <= line.size_bytes <= line.high_bytes, line.name
        assert line.group in GROUPS


@given(cases())
def test_the_verdict_and_the_shortfall_agree(case: Case) -> None:
    budget = case.ask()
    assert budget.shortfall_bytes >= 0
    if budget.verdict == "fits":
        assert budget.shortfall_bytes == 0
        assert budget.reasons == ()
    else:
        assert budget.reasons
    if budget.verdict == "does_not_fit":
        assert budget.shortfall_bytes > 0


@given(cases())
def test_json_holds_the_same_numbers(case: Case) -> None:
    budget = case.ask()
    content = json.loads(estimate_json([budget]))
    assert content["per_gpu"]["used_bytes"] == budget.used_bytes == sum(line["bytes"] for line in content["lines"])
    assert content["kv_cache"]["needed_bytes"] == budget.kv.needed_bytes
    assert content["verdict"] == budget.verdict
    assert content["model"]["parameters"] == budget.parameters
    assert json.loads(json.dumps(content)) == content


@given(cases(engines=("sglang", "tensorrt-llm", "llama.cpp", "transformers")))
def test_parameters_are_those_of_the_model(case: Case) -> None:
    assert case.ask().parameters == model_of(case.model).parameters


@given(cases())
def test_the_same_question_has_the_same_answer(case: Case) -> None:
    assert case.ask() == case.ask()


@given(cases(), st.integers(1, 100_000))
def test_a_longer_context_never_costs_less(case: Case, more: int) -> None:
    context = case.settings.workload.context_tokens
    assert context is not None
    longer = min(context + more, model_of(case.model).max_context_tokens)
    short, long = case.ask(), case.ask(case.with_workload(context_tokens=longer))
    assert long.kv.needed_bytes >= short.kv.needed_bytes
    assert demand_bytes(long) >= demand_bytes(short)


@given(cases(), st.integers(1, 64))
def test_more_requests_never_cost_less(case: Case, more: int) -> None:
    concurrency = case.settings.workload.concurrency
    few, many = case.ask(), case.ask(case.with_workload(concurrency=concurrency + more))
    assert many.kv.needed_bytes >= few.kv.needed_bytes
    assert demand_bytes(many) >= demand_bytes(few)


@given(cases(engines=PAGED), st.integers(1, 4096), st.integers(1, 4096))
def test_a_larger_step_never_leaves_more_cache(case: Case, seqs: int, more: int) -> None:
    small = replace(case.settings, max_num_seqs=seqs, max_num_batched_tokens=8192)
    large = replace(small, max_num_seqs=seqs + more, max_num_batched_tokens=8192 + more)
    assert available_bytes(case.ask(large)) <= available_bytes(case.ask(small))


@given(cases(engines=PAGED, ranks=(1, 2, 4)))
def test_twice_the_tensor_ranks_never_hold_more_weights_each(case: Case) -> None:
    tensor = case.settings.layout.tensor
    assume(all(layer.num_heads % (2 * tensor) == 0 for layer in model_of(case.model).layers if layer.num_heads))
    doubled = replace(case.settings, layout=ParallelLayout(tensor=2 * tensor))
    assert case.ask(doubled).group_bytes("weights") <= case.ask().group_bytes("weights")


@given(cases(engines=("vllm", "vllm@0.9.2", "sglang", "tensorrt-llm"), schemes=SCHEMES))
def test_quantized_weights_never_cost_more_than_16_bits(case: Case) -> None:
    quantized, plain = case.ask(), replace(case, scheme=None).ask()
    assert quantized.group_bytes("weights") <= plain.group_bytes("weights")


@given(cases(engines=("vllm", "vllm@0.9.2", "sglang")))
def test_an_fp8_cache_never_costs_more_than_16_bits(case: Case) -> None:
    """From a few pages on: kernels of an FP8 cache may take larger pages."""
    longer = case.with_workload(context_tokens=min(4096, model_of(case.model).max_context_tokens))
    plain, fp8 = case.ask(longer), case.ask(replace(longer, kv_dtype="fp8"))
    assert fp8.kv.needed_bytes <= plain.kv.needed_bytes
    assert fp8.kv.bytes_per_token <= plain.kv.bytes_per_token


@given(cases(engines=PAGED), st.sampled_from((1.0, 0.5, 0.1)))
def test_the_room_for_requests_is_tight(case: Case, kept: float) -> None:
    """Up to the two digits that are printed, and the page that vLLM's V1 prints and keeps aside."""
    case = replace(case, settings=replace(case.settings, kv_keep_fraction=kept))
    kv = case.ask(case.with_workload(concurrency=1)).kv
    assume(kv.max_concurrency is not None)
    assert kv.max_concurrency is not None
    room = floor(kv.max_concurrency)
    if room >= 1:
        full = case.ask(case.with_workload(concurrency=room))
        page_bytes = full.group_bytes("kv_cache") // full.kv.blocks if full.kv.blocks else 0
        assert full.kv.needed_bytes <= available_bytes(full) + page_bytes + kv.needed_bytes // 200
    more = case.ask(case.with_workload(concurrency=room + 1))
    assert more.kv.needed_bytes > available_bytes(more)


@given(cases(engines=PAGED), st.sampled_from((1.0, 0.5, 0.1)))
def test_the_longest_context_is_tight(case: Case, kept: float) -> None:
    case = replace(case, settings=replace(case.settings, kv_keep_fraction=kept))
    limit = model_of(case.model).max_context_tokens
    pinned = replace(case.with_workload(concurrency=1), max_num_seqs=16, max_num_batched_tokens=2048)
    budget = case.ask(pinned)
    longest = budget.kv.max_context_tokens
    assume(budget.kv.capacity_tokens is not None)
    assert longest is not None
    assert 0 <= longest <= limit
    if longest:
        full = case.ask(replace(pinned, workload=replace(pinned.workload, context_tokens=longest)))
        assert full.kv.needed_bytes <= available_bytes(full)
    if longest < limit:
        more = case.ask(replace(pinned, workload=replace(pinned.workload, context_tokens=longest + 1)))
        assert more.kv.needed_bytes > available_bytes(more)


@given(cases(engines=PAGED), st.floats(0.2, 0.94), st.floats(0.01, 0.05))
def test_a_larger_part_of_the_card_never_leaves_less_cache(case: Case, part: float, more: float) -> None:
    small, large = (replace(case.settings, gpu_memory_utilization=each) for each in (part, part + more))
    assert case.ask(large).group_bytes("kv_cache") >= case.ask(small).group_bytes("kv_cache")


@given(cases(engines=PAGED), st.integers(0, 1 << 37))
def test_a_larger_card_never_leaves_less_cache(case: Case, more: int) -> None:
    gpu = gpu_of(case.gpu)
    bytes_of = {"memory_bytes": gpu.memory_bytes + more, "visible_low_bytes": gpu.visible_low_bytes + more}
    larger = replace(gpu, **bytes_of, visible_high_bytes=gpu.visible_high_bytes + more)
    pinned = replace(case.settings, max_num_seqs=128, max_num_batched_tokens=4096)
    name, _, version = case.engine.partition("@")
    small = case.ask(pinned)
    large = load_engine(name).estimate(model_of(case.model), larger, pinned, version or None)
    assert available_bytes(large) >= available_bytes(small)
