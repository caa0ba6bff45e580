"""A deep model's step from two short ones: the same bytes as the whole step."""

from __future__ import annotations

import pytest

from memplan.budget.training.periodic import find_pattern, run_stage
from memplan.budget.training.reserved import reserved_bytes
from memplan.budget.training.step import Step
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.pipeline import load_model

STEPS = {
    "full, nothing sharded": TrainingSpec(checkpointing="none"),
    "full, checkpointed, FP32 kept": TrainingSpec(weight_bytes=4, grad_bytes=4, state_bytes=4, autocast=True),
    "FSDP2 in mixed precision": TrainingSpec(
        sharding="fsdp2", weight_bytes=4, grad_bytes=4, state_bytes=4, layout=TrainingLayout(data=8)
    ),
    "FSDP1, LoRA": TrainingSpec(sharding="fsdp1", method="lora", layout=TrainingLayout(data=4)),
    "QLoRA without checkpointing": TrainingSpec(method="qlora", checkpointing="none"),
    "ZeRO-2, offloaded activations": TrainingSpec(
        sharding="zero2", accumulation=4, offload_activations=True, layout=TrainingLayout(data=8)
    ),
    "TP, PP and sequence parallelism": TrainingSpec(
        layout=TrainingLayout(pipeline=4, tensor=2, sequence_parallel=True),
        accumulation=8,
        checkpointing="selective",
        loss="linear",
    ),
}


def model(name: str) -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "qwen3-30b-a3b"])
@pytest.mark.parametrize("step", STEPS)
def test_a_deep_model_from_two_short_ones_is_the_whole_step_to_the_byte(name: str, step: str) -> None:
    spec, training = model(name), STEPS[step]
    assert find_pattern(spec.layers).repeats > 20
    for stage in {0, training.layout.pipeline - 1}:
        whole, quick = Step(spec, training, stage).run(), run_stage(spec, training, stage)
        for full, short in zip(whole, quick.phases, strict=True):
            assert (short.name, short.peak_bytes, short.after_bytes) == (full.name, full.peak_bytes, full.after_bytes)
            assert sum(short.held.values()) == full.peak_bytes
            assert category_sums(short.held) == category_sums(full.held)


def category_sums(held: dict[tuple[str, str], int]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for (category, _), size in held.items():
        sums[category] = sums.get(category, 0) + size
    return {category: size for category, size in sums.items() if size}


@pytest.mark.parametrize("step", STEPS)
def test_what_is_reserved_is_near_a_replay_of_the_whole_step(step: str) -> None:
    spec, training = model("llama-3.1-8b"), STEPS[step]
    whole = Step(spec, training, 0)
    whole.run()
    replayed = reserved_bytes(whole)
    assert run_stage(spec, training, 0).find_reserved() == pytest.approx(replayed, rel=0.1)


def test_layers_in_turns_repeat_as_a_group_and_the_odd_ones_stay() -> None:
    first, second, odd = model("llama-3.1-8b").layers[0], model("qwen3-8b").layers[0], model("mistral-7b").layers[0]
    pattern = find_pattern((odd, odd, *(first, second) * 20, first))
    assert (pattern.before, pattern.period, pattern.repeats) == ((odd, odd), (first, second), 20)
    assert pattern.after == (first,)
    assert pattern.layers(20) == (odd, odd, *(first, second) * 20, first)


def test_a_model_that_is_not_deep_is_run_whole() -> None:
    layers = model("llama-3.1-8b").layers[:6]
    assert find_pattern(layers).repeats == 1
    assert find_pattern(layers).layers(1) == layers
