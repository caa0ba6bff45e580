"""Answers to training questions against arithmetic that anyone can do, and what must hold of any of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.catalog.gpus import find_gpu
from memplan.catalog.models import list_models
from memplan.domain.model import ModelSpec
from memplan.domain.training_budget import Phase, TrainingBudget
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.answer import TrainingAsked, answer_training
from memplan.engines.training.choose import choose_training
from memplan.engines.training.held import trained_parameters
from memplan.engines.training.measure import measure
from memplan.errors import UnsupportedModel, UsageError
from memplan.pipeline import load_model
from memplan.records import replace
from memplan.units import GIB

BUCKET_BYTES = 5 * 10**8 * 2
LIVE_BYTES = 10**9 * 2


@cache
def model(name: str) -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")


def answered(name: str, gpu: str = "a100-80g", *, remedies: bool = False, **asked: Any) -> TrainingBudget:
    question = TrainingQuestion(**{"method": "full", **asked})
    return answer_training(
        TrainingAsked(spec=model(name), gpu=find_gpu(gpu), question=question, with_remedies=remedies)
    )


def phase(budget: TrainingBudget, name: str) -> Phase:
    return next(each for each in budget.phases if each.name == name)


def allocated(name: str, gpu: str = "a100-80g", **asked: Any) -> int:
    question = TrainingQuestion(**{"method": "full", **asked})
    gpus = find_gpu(gpu)
    return measure(model(name), choose_training(question, model(name), gpus), gpus, None).allocated_bytes


def test_foreach_adamw_holds_five_copies_of_a_model_at_the_step() -> None:
    budget = answered("mistralai/Mistral-7B-v0.1", optimizer_form="foreach", checkpointing="full", sequence_tokens=1024)
    weights_bytes = model("mistralai/Mistral-7B-v0.1").parameters * 2
    assert weights_bytes / GIB == pytest.approx(13.49, abs=0.01)
    assert budget.peak_phase == "optimizer"
    assert budget.allocated_bytes == pytest.approx(5 * weights_bytes, rel=2e-4)
    assert allocated(
        "mistralai/Mistral-7B-v0.1", optimizer_form="fused", checkpointing="full", sequence_tokens=1024, loss="linear"
    ) == pytest.approx(4 * weights_bytes, rel=0.02)


@pytest.mark.parametrize(("gpus", "gib"), [(2, 67.46), (4, 33.73)])
def test_fsdp_in_mixed_precision_holds_twenty_bytes_a_parameter_over_its_shards(gpus: int, gib: float) -> None:
    budget = answered(
        "mistralai/Mistral-7B-v0.1",
        num_gpus=gpus,
        sharding="fsdp1",
        precision="bf16",
        optimizer_form="foreach",
        checkpointing="full",
        sequence_tokens=1024,
    )
    assert phase(budget, "optimizer").peak_bytes / GIB == pytest.approx(gib, abs=0.02)


def test_ddp_keeps_a_second_copy_of_the_gradients_in_its_buckets() -> None:
    alone = answered("qwen3-0.6b", gpu="a100-80g", sequence_tokens=512)
    several = answered("qwen3-0.6b", gpu="a100-80g", sequence_tokens=512, sharding="ddp", num_gpus=4)
    gradients = phase(alone, "optimizer").category_bytes()["gradients"]
    buckets = phase(several, "optimizer").category_bytes()["communication_buffers"]
    assert buckets == pytest.approx(gradients, rel=1e-3)


@pytest.mark.parametrize("gpus", [4, 8])
def test_zero_2_is_deepspeeds_own_formula_with_a_bucket_and_a_flat_copy(gpus: int) -> None:
    """estimate_zero2_model_states_mem_needs: 2 B a parameter, and 18 B over the ranks."""
    parameters = model("mistralai/Mistral-7B-v0.1").parameters
    budget = answered(
        "mistralai/Mistral-7B-v0.1", trainer="deepspeed", sharding="zero2", num_gpus=gpus, checkpointing="full"
    )
    step = phase(budget, "optimizer").peak_bytes
    flat = 2 * parameters / gpus
    assert step - BUCKET_BYTES - flat == pytest.approx(2 * parameters + 18 * parameters / gpus, rel=1e-3)


def test_zero_1_keeps_all_gradients_and_zero_3_cuts_the_weights() -> None:
    parameters = model("mistralai/Mistral-7B-v0.1").parameters

    def states(sharding: str) -> dict[str, int]:
        budget = answered(
            "mistralai/Mistral-7B-v0.1", trainer="deepspeed", sharding=sharding, num_gpus=8, checkpointing="full"
        )
        return dict(phase(budget, "optimizer").category_bytes())

    first, third = states("zero1"), states("zero3")
    assert first["gradients"] == pytest.approx(2 * parameters, rel=1e-3)
    assert first["weights"] == pytest.approx(2 * parameters, rel=1e-3)
    assert third["weights"] == pytest.approx(2 * parameters / 8, rel=1e-3)
    assert third["gradients"] == pytest.approx(2 * parameters / 8, rel=1e-3)
    assert first["optimizer_state"] == third["optimizer_state"] == pytest.approx(12 * parameters / 8, rel=1e-3)
    assert third["gathered_weights"] == pytest.approx(LIVE_BYTES, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "rank", "targets", "number"),
    [
        ("llama-2-7b", 8, ("q_proj", "v_proj"), 4_194_304),
        ("llama-3.1-8b", 16, (), 41_943_040),
        ("mistralai/Mistral-7B-v0.1", 64, ("q_proj", "k_proj", "v_proj", "o_proj"), 54_525_952),
    ],
)
def test_adapters_have_rank_times_inputs_and_outputs(
    name: str, rank: int, targets: tuple[str, ...], number: int
) -> None:
    question = TrainingQuestion(method="lora", lora_rank=rank, lora_targets=targets)
    spec = model(name)
    assert trained_parameters(spec, choose_training(question, spec, find_gpu("l4"))) == number


def test_a_tied_embedding_is_trained_and_kept_once() -> None:
    spec = model("qwen3-0.6b")
    assert spec.tied_embeddings
    budget = answered("qwen3-0.6b", sequence_tokens=256)
    assert budget.trained_parameters == spec.parameters
    assert phase(budget, "load").category_bytes()["weights"] == pytest.approx(2 * spec.parameters, rel=1e-3)


def test_qlora_keeps_layers_in_four_bits_and_the_rest_in_sixteen() -> None:
    spec = model("llama-2-7b")
    outside = 2 * sum(each.num_parameters for each in spec.shared)
    layers = spec.parameters - sum(each.num_parameters for each in spec.shared)
    weights = phase(answered("llama-2-7b", method="qlora"), "load").category_bytes()["weights"]
    assert weights == pytest.approx(outside + layers * (0.5 + 4 / 64), rel=0.01)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_activations_grow_in_proportion_to_tokens(checkpointing: str) -> None:
    sizes = [
        allocated(
            "llama-3.1-8b", method="lora", trainer="torchtitan", checkpointing=checkpointing, sequence_tokens=tokens
        )
        for tokens in (2048, 4096, 6144)
    ]
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.01)


def test_checkpointing_keeps_less_the_more_it_computes_again() -> None:
    sizes = [
        allocated("llama-3.1-8b", method="lora", trainer="torchtitan", checkpointing=each, sequence_tokens=4096)
        for each in ("full", "selective", "none")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]


def test_the_cheap_optimizers_keep_less() -> None:
    states = {
        name: phase(answered("qwen3-0.6b", optimizer=name, sequence_tokens=256), "load")
        .category_bytes()
        .get("optimizer_state", 0)
        for name in ("adamw", "lion", "adamw-8bit", "paged-adamw-8bit", "adafactor")
    }
    parameters = model("qwen3-0.6b").parameters
    assert states["adamw"] == pytest.approx(4 * parameters, rel=0.001)
    assert states["lion"] == pytest.approx(2 * parameters, rel=0.001)
    assert states["adamw-8bit"] == pytest.approx(2 * parameters * (1 + 4 / 256), rel=0.01)
    assert states["paged-adamw-8bit"] == 0
    assert states["adafactor"] < states["lion"]


def test_saving_gathers_one_tensor_where_weights_are_cut_and_nothing_else() -> None:
    alone, cut = answered("qwen3-0.6b"), answered("qwen3-0.6b", num_gpus=4)
    assert phase(alone, "checkpoint").peak_bytes == phase(alone, "load").peak_bytes
    embedding = 2 * max(each.num_parameters for each in model("qwen3-0.6b").shared)
    assert phase(cut, "checkpoint").peak_bytes == phase(cut, "load").peak_bytes + embedding
    assert any("rank 0" in each.name for each in cut.host)


def test_what_is_offloaded_leaves_the_gpu_for_the_host() -> None:
    here = answered("qwen3-8b", num_gpus=8)
    there = answered("qwen3-8b", num_gpus=8, offloaded=("optimizer", "parameters"))
    assert phase(there, "load").peak_bytes < phase(here, "load").peak_bytes / 10
    assert there.host_bytes - here.host_bytes == pytest.approx(8 * model("qwen3-8b").parameters, rel=1e-3)


def test_the_lines_sum_to_what_the_gpu_holds_and_phases_to_their_peaks() -> None:
    for asked in ({"method": "lora"}, {"num_gpus": 8}, {"method": "qlora", "micro_batch": 4}):
        budget = answered("llama-3.1-8b", **asked)
        assert sum(line.size_bytes for line in budget.lines) == budget.used_bytes
        assert all(line.low_bytes <= line.size_bytes <= line.high_bytes for line in budget.lines)
        for each in budget.phases:
            assert sum(held.size_bytes for held in each.held) == each.peak_bytes
        assert budget.allocated_bytes == max(each.peak_bytes for each in budget.phases[:4])


def test_a_remedy_is_what_the_same_question_with_it_answers() -> None:
    asked: dict[str, Any] = {"method": "lora", "sequence_tokens": 4096, "micro_batch": 2}
    budget = answered("llama-3.1-8b", "rtx-4090", remedies=True, **asked)
    assert budget.verdict == "does_not_fit"
    assert budget.cheapest is not None
    assert budget.cheapest.verdict == "fits"
    fields = {"loss": str, "checkpointing": str, "micro-batch": int, "grad-accum": int, "optimizer": str}
    names = {"micro-batch": "micro_batch", "grad-accum": "accumulation"}
    checked = 0
    for remedy in budget.remedies:
        flags = dict(zip(*[iter(remedy.change.replace("--", "").split())] * 2, strict=True))
        if not flags.keys() <= fields.keys():
            continue
        changed = {names.get(flag, flag): fields[flag](value) for flag, value in flags.items()}
        again = answered("llama-3.1-8b", "rtx-4090", **{**asked, **changed})
        assert again.verdict == remedy.verdict
        assert again.allocated_bytes == budget.allocated_bytes - remedy.saves_bytes
        checked += 1
    assert checked >= 4


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    asked: dict[str, Any] = {"method": "lora", "checkpointing": "full", "loss": "linear"}
    budget = answered("llama-3.1-8b", remedies=True, **asked)
    assert budget.limits is not None
    largest = budget.limits.micro_batch
    assert largest > 1
    assert answered("llama-3.1-8b", micro_batch=largest, **asked).verdict == "fits"
    assert answered("llama-3.1-8b", micro_batch=largest + 1, **asked).verdict != "fits"
    tokens = budget.limits.sequence_tokens
    assert answered("llama-3.1-8b", sequence_tokens=tokens, **asked).verdict == "fits"
    if tokens + 256 <= model("llama-3.1-8b").max_context_tokens:
        assert answered("llama-3.1-8b", sequence_tokens=tokens + 256, **asked).verdict != "fits"


QUESTIONS = st.builds(
    TrainingQuestion,
    method=st.sampled_from(["full", "lora", "qlora"]),
    sequence_tokens=st.integers(1, 16).map(lambda number: number * 512),
    micro_batch=st.integers(1, 8),
    checkpointing=st.sampled_from(["none", "full"]),
    optimizer=st.sampled_from(["adamw", "adamw-8bit", "sgd"]),
    loss=st.sampled_from(["plain", "linear", "chunked"]),
    sharding=st.sampled_from(["fsdp2", "fsdp1", "zero2"]),
    num_gpus=st.sampled_from([2, 4, 8]),
)
QUICK = settings(max_examples=25)


def bytes_of(question: TrainingQuestion) -> int:
    spec, gpu = model("qwen3-0.6b"), find_gpu("h100")
    return measure(spec, choose_training(question, spec, gpu), gpu, None).allocated_bytes


@QUICK
@given(QUESTIONS)
def test_more_tokens_never_take_less(question: TrainingQuestion) -> None:
    longer = replace(question, sequence_tokens=(question.sequence_tokens or 0) + 512)
    assert bytes_of(question) <= bytes_of(longer)
    assert bytes_of(question) <= bytes_of(replace(question, micro_batch=question.micro_batch + 1))


@QUICK
@given(QUESTIONS)
def test_more_shards_never_take_more(question: TrainingQuestion) -> None:
    assert bytes_of(replace(question, num_gpus=16)) <= bytes_of(question)


def test_a_smaller_micro_batch_is_the_largest_half_that_fits() -> None:
    asked: dict[str, Any] = {"method": "lora", "checkpointing": "full", "micro_batch": 32, "sequence_tokens": 2048}
    budget = answered("qwen3-8b", "a100-80g", remedies=True, **asked)
    change = next(each for each in budget.remedies if each.change.startswith("--micro-batch"))
    number, accumulation = (int(word) for word in change.change.split()[1::2])
    assert number * accumulation == 32
    assert change.verdict == "fits"
    assert answered("qwen3-8b", "a100-80g", **{**asked, "micro_batch": 2 * number}).verdict != "fits"


CATALOGUE = [each.name for each in list_models()]
WAYS: tuple[dict[str, Any], ...] = (
    {"method": "full", "num_gpus": 8, "trainer": "megatron"},
    {"method": "lora", "checkpointing": "full"},
    {"method": "qlora", "num_gpus": 2, "compiled": True},
    {"method": "full", "num_gpus": 8, "trainer": "deepspeed", "sharding": "zero3"},
)


@pytest.mark.parametrize("start", range(4))
def test_models_of_the_catalogue_are_answered_or_refused_by_name(start: int) -> None:
    answers, hints = 0, []
    for name in CATALOGUE[start * 10 :: 40]:
        try:
            budget = answered(name, "h200", **WAYS[start])
        except (UnsupportedModel, UsageError) as refused:
            hints.append(refused.hint)
            continue
        answers += 1
        assert sum(line.size_bytes for line in budget.lines) == budget.used_bytes, name
        assert all(held.size_bytes > 0 for each in budget.phases for held in each.held), name
    assert answers >= 5
    assert all(hints)
