"""From a training question to a step: what trainers do by themselves, and what is refused, with the way out."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingSpec
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.answer import TrainingAsked, answer_training
from memplan.engines.training.choose import choose_training, notes
from memplan.engines.training.presets import PRESETS
from memplan.errors import UsageError
from memplan.pipeline import load_model


@cache
def model(name: str = "llama-3.1-8b") -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")


def chosen(name: str = "llama-3.1-8b", gpu: str = "h100", **asked: Any) -> TrainingSpec:
    return choose_training(TrainingQuestion(**{"method": "full", **asked}), model(name), find_gpu(gpu))


@pytest.mark.parametrize("trainer", PRESETS)
def test_every_trainer_trains_on_one_gpu_and_on_eight(trainer: str) -> None:
    assert chosen(trainer=trainer).sharding == "none"
    several = chosen(trainer=trainer, num_gpus=8)
    assert several.sharding in ("fsdp1", "fsdp2", "zero1", "zero2")
    assert several.layout.ranks == 8


@pytest.mark.parametrize("trainer", PRESETS)
def test_every_fact_of_a_trainer_names_its_source(trainer: str) -> None:
    for name, value, source in PRESETS[trainer].facts:  # type: ignore[index]
        assert name
        assert value
        assert "/" in source or ":" in source, (trainer, name)


def test_several_gpus_and_no_sharding_is_fsdp2_and_it_is_said() -> None:
    question = TrainingQuestion(method="full", num_gpus=8)
    training = choose_training(question, model(), find_gpu("h100"))
    assert training.sharding == "fsdp2"
    assert any("FSDP2 is assumed" in each for each in notes(question, training))


def test_what_is_kept_in_which_type_follows_trainer_and_precision() -> None:
    def kept(**asked: Any) -> tuple[int, int, int, int]:
        made = chosen(**asked)
        return made.weight_bytes, made.grad_bytes, made.state_bytes, made.master_bytes

    assert kept() == (2, 2, 2, 0)
    assert kept(precision="bf16") == (4, 4, 4, 0)
    assert kept(trainer="torchtitan") == (4, 4, 4, 0)
    assert kept(trainer="megatron") == (2, 4, 4, 4)
    assert kept(trainer="deepspeed") == (2, 2, 4, 4)
    assert kept(sharding="zero2", num_gpus=8) == (2, 2, 4, 4)
    assert chosen(precision="bf16").autocast
    assert not chosen(precision="bf16", num_gpus=8).autocast


def test_hsdp_shards_over_a_node_and_replicates_over_nodes() -> None:
    layout = chosen(sharding="hsdp", num_gpus=32).layout
    assert (layout.data, layout.shards) == (32, 8)
    assert chosen(sharding="hsdp", num_gpus=8).layout.shards == 4


def test_sequence_parallelism_goes_with_tensor_parallelism_where_trainers_have_it() -> None:
    assert chosen(trainer="megatron", tensor=4, num_gpus=8).layout.sequence_parallel
    assert not chosen(tensor=4, num_gpus=8).layout.sequence_parallel


def test_fp8_has_the_recipe_of_the_trainer_unless_another_is_asked_for() -> None:
    def recipe(**asked: Any) -> str | None:
        return chosen(precision="fp8", **asked).float8

    assert chosen(precision="bf16").float8 is None
    assert recipe() == "tensorwise"
    assert recipe(num_gpus=8) == "tensorwise-gather"
    assert recipe(num_gpus=8, trainer="torchtitan") == "tensorwise"
    assert recipe(trainer="megatron") == "delayed"
    assert recipe(num_gpus=8, float8="rowwise") == "rowwise"
    assert recipe(float8="delayed") == "delayed"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"checkpointing": "selective"}, "transformers has no selective checkpointing", "--trainer torchtitan"),
    (
        {"trainer": "deepspeed", "sharding": "zero3", "pipeline": 2, "num_gpus": 8},
        "ZeRO-3 does not work with pipeline parallelism",
        "--sharding zero1 with --pp 2",
    ),
    ({"sharding": "ddp", "tensor": 2, "num_gpus": 8}, "no tensor parallelism together with DDP", "fsdp2"),
    ({"trainer": "torchtune", "pipeline": 2, "num_gpus": 8}, "torchtune has no pipeline parallelism", "torchtitan"),
    ({"trainer": "torchtitan", "sharding": "zero3", "num_gpus": 8}, "cannot shard with `zero3`", "fsdp2"),
    ({"sharding": "none", "num_gpus": 8}, "their gradients would never meet", "ddp"),
    ({"tensor": 3, "num_gpus": 3}, "does not divide", "--tp 1, 2, 4, 8 or 16"),
    ({"trainer": "megatron", "pipeline": 33, "num_gpus": 33}, "more than", "fewer stages"),
    ({"trainer": "megatron", "pipeline": 24, "num_gpus": 24}, "leaves a stage without layers", "--pp 16"),
    ({"tensor": 3, "num_gpus": 8}, "8 GPUs do not hold 3 ranks evenly", "leave --tp"),
    ({"offloaded": ("parameters",)}, "`--offload parameters` with --sharding none", "fsdp2"),
    ({"offloaded": ("optimizer",)}, "`--offload optimizer` with --sharding none", "zero2"),
    ({"offloaded": ("optimizer",), "num_gpus": 8}, "all of its shards on the host or none", "optimizer,parameters"),
    ({"method": "lora", "precision": "fp8"}, "adapters beside frozen ones", "bf16"),
    ({"float8": "rowwise"}, "--fp8-recipe without FP8", "--mixed-precision fp8"),
    ({"precision": "fp8", "trainer": "litgpt"}, "litgpt has no FP8", "--trainer transformers"),
    ({"precision": "fp8", "float8": "rowwise", "trainer": "megatron"}, "no FP8 recipe `rowwise`", "delayed"),
    ({"precision": "fp8", "float8": "tensorwise-gather"}, "nothing is gathered in 8 bits", "--sharding fsdp2"),
    ({"method": "qlora", "sharding": "zero3", "num_gpus": 2}, "cannot cut 4 bit weights", "fsdp2"),
    ({"lora_rank": 8}, "has no adapters", "--train lora"),
    ({"expert": True, "trainer": "megatron", "num_gpus": 8}, "dense layers", "leave --ep out"),
    ({"sequence_tokens": 1 << 20}, "far beyond", "131072"),
    ({"sharding": "hsdp", "num_gpus": 2}, "make no two groups", "fsdp2"),
    ({"method": "lora", "trainer": "megatron"}, "with megatron is not known", "torchtune"),
]


@pytest.mark.parametrize(("asked", "said", "way_out"), REFUSED, ids=[said for _, said, _ in REFUSED])
def test_a_combination_that_cannot_be_is_refused_with_a_way_out(asked: dict[str, Any], said: str, way_out: str) -> None:
    with pytest.raises(UsageError) as refused:
        chosen(**asked)
    assert said in refused.value.message
    assert way_out in (refused.value.hint or "")
    assert "\n" not in refused.value.message


def test_cards_without_the_tensor_cores_are_refused_the_type() -> None:
    with pytest.raises(UsageError, match="no BF16 tensor cores"):
        chosen(gpu="t4", precision="bf16")
    with pytest.raises(UsageError, match="no FP8 tensor cores"):
        chosen(gpu="a100-80g", precision="fp8")


def test_experts_are_cut_over_as_many_ranks_as_divide_them() -> None:
    assert chosen("qwen3-30b-a3b", trainer="megatron", expert=True, num_gpus=16).layout.expert == 16
    assert chosen("mixtral-8x7b", trainer="megatron", expert=True, num_gpus=32).layout.expert == 8


def test_released_weights_of_few_bits_are_widened_and_it_is_said() -> None:
    question = TrainingQuestion(method="full", num_gpus=8)
    asked = TrainingAsked(spec=model("gpt-oss-20b"), gpu=find_gpu("h200"), question=question, with_remedies=False)
    budget = answer_training(asked)
    assert any("made 16 bits wide" in each for each in budget.warnings)
    assert budget.phases[0].category_bytes()["weights"] > 2 * budget.parameters / 8 * 0.9


def test_sequences_are_cut_over_ranks_and_weights_over_all_of_them() -> None:
    layout = chosen(num_gpus=8, context=4, sequence_tokens=32768).layout
    assert (layout.data, layout.context, layout.shards, layout.ranks) == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"trainer": "deepspeed", "context": 2}, "deepspeed has no context parallelism: `--cp`"),
        ({"sharding": "zero3", "context": 2}, "transformers cuts sequences over ranks with FSDP2 alone"),
        ({"context": 8, "sequence_tokens": 4100}, "--cp 8 does not divide sequences of 4100 tokens"),
    ],
)
def test_context_parallelism_that_cannot_be_is_refused(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        chosen(num_gpus=8, **asked)
