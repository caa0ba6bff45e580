"""A step composed from one of a few layers: the same bytes as the step of all of them."""

from __future__ import annotations

import pytest

from memplan.budget.training.composed import can_compose, composed_phases, shortest_stack
from memplan.budget.training.periodic import run_evaluation, run_stage
from memplan.budget.training.step import Step
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.pipeline import load_model
from memplan.records import replace

STEPS = {
    "full, temporaries of all weights": TrainingSpec(checkpointing="none", optimizer_form="foreach"),
    "full, temporaries of the largest weight": TrainingSpec(optimizer="adafactor", optimizer_form="foreach"),
    "FSDP2 in mixed precision": TrainingSpec(
        sharding="fsdp2", weight_bytes=4, grad_bytes=4, state_bytes=4, layout=TrainingLayout(data=8)
    ),
    "FSDP1": TrainingSpec(sharding="fsdp1", layout=TrainingLayout(data=4)),
    "LoRA over FSDP2, nothing run twice": TrainingSpec(
        method="lora", checkpointing="none", sharding="fsdp2", layout=TrainingLayout(data=4)
    ),
    "QLoRA": TrainingSpec(method="qlora"),
}
MODELS = ["qwen3-next", "gemma-3-27b", "nemotron-h-56b", "gpt-oss-20b", "llama-3.1-8b"]


def model(name: str) -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")


def performed(spec: ModelSpec, training: TrainingSpec, layers: tuple[Layer, ...]) -> Step:
    step = Step(replace(spec, layers=layers), training)
    step.perform()
    return step


def neighbourhoods(layers: tuple[Layer, ...]) -> set[tuple[int, ...]]:
    kinds = [0, *(id(each) for each in layers), 0]
    return {tuple(kinds[at : at + 3]) for at in range(len(layers))}


@pytest.mark.parametrize("name", MODELS)
def test_a_short_stack_has_the_neighbourhoods_of_the_whole_one_and_no_other(name: str) -> None:
    layers = model(name).layers
    short = shortest_stack(layers)
    assert neighbourhoods(short) == neighbourhoods(layers)
    assert len(short) < 10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("step", STEPS)
def test_composed_phases_are_those_of_the_whole_step_to_the_byte(name: str, step: str) -> None:
    spec, training = model(name), STEPS[step]
    assert can_compose(training)
    short = shortest_stack(spec.layers)
    composed = composed_phases(spec, performed(spec, training, short), short)
    assert composed is not None
    said = [(each.name, each.peak_bytes, each.after_bytes) for each in composed]
    assert said == [(each.name, each.peak_bytes, each.after_bytes) for each in Step(spec, training).run()]


@pytest.mark.parametrize("step", STEPS)
def test_an_evaluation_of_few_layers_is_that_of_all(step: str) -> None:
    spec, training = model("nemotron-h-56b"), STEPS[step]
    load, whole = Step(spec, training).evaluate()
    found = run_evaluation(spec, training, load)
    assert (found.peak_bytes, found.after_bytes) == (whole.peak_bytes, whole.after_bytes)
    assert sum(found.held.values()) == found.peak_bytes


def test_layers_without_gradients_before_the_first_adapter_are_not_composed() -> None:
    spec = model("qwen3-next")
    training = TrainingSpec(method="lora", checkpointing="none", lora_targets=("q_proj",))
    short = shortest_stack(spec.layers)
    assert composed_phases(spec, performed(spec, training, short), short) is None


def test_what_is_of_all_layers_together_is_not_composed() -> None:
    assert not can_compose(TrainingSpec(sharding="ddp", layout=TrainingLayout(data=2)))
    assert not can_compose(TrainingSpec(accumulation=2))
    assert not can_compose(TrainingSpec(sharding="fsdp1", method="lora", layout=TrainingLayout(data=2)))
    assert not can_compose(TrainingSpec(layout=TrainingLayout(pipeline=2), accumulation=4))


@pytest.mark.parametrize("name", ["qwen3-next", "nemotron-3-nano", "gpt2"])
def test_what_is_reserved_is_what_the_whole_answer_says(name: str) -> None:
    spec, training = model(name), TrainingSpec(checkpointing="none")
    quick, full = (run_stage(spec, training, 0, with_held=with_held) for with_held in (False, True))
    assert quick.find_reserved() == full.find_reserved()
