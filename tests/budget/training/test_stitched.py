"""A step that was put together from parts of a shorter one: every allocation and free of the step of all layers."""

from __future__ import annotations

import pytest

from memplan.budget.training.composed import shortest_stack
from memplan.budget.training.device import Device
from memplan.budget.training.reserved import reserved_bytes
from memplan.budget.training.step import Step
from memplan.budget.training.stitched import NotAlike, Stitches
from memplan.domain.model import Layer, ModelSpec
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.pipeline import load_model
from memplan.records import replace

FLOATS = {"weight_bytes": 4, "grad_bytes": 4, "state_bytes": 4}
STEPS = {
    "full, foreach": TrainingSpec(checkpointing="none", optimizer_form="foreach", loss="plain-flat"),
    "full, foreach, run twice": TrainingSpec(optimizer_form="foreach", reentrant=False),
    "full, run twice reentrantly": TrainingSpec(optimizer_form="fused"),
    "full, selective": TrainingSpec(optimizer_form="fused", checkpointing="selective", reentrant=False),
    "full, adafactor": TrainingSpec(optimizer="adafactor", optimizer_form="foreach"),
    "full in the backward pass": TrainingSpec(optimizer_in_backward=True),
    "FSDP2 in mixed precision": TrainingSpec(sharding="fsdp2", layout=TrainingLayout(data=8), reduce_bytes=4, **FLOATS),
    "FSDP2, offloaded": TrainingSpec(
        sharding="fsdp2", layout=TrainingLayout(data=2), offload_parameters=True, offload_optimizer=True
    ),
    "FSDP2 of torchtitan": TrainingSpec(
        sharding="fsdp2", layout=TrainingLayout(data=8), splits_outside=True, checkpointing="selective", reentrant=False
    ),
    "FSDP1": TrainingSpec(sharding="fsdp1", layout=TrainingLayout(data=4)),
    "LoRA": TrainingSpec(method="lora", checkpointing="none"),
    "LoRA over FSDP2": TrainingSpec(
        method="lora", checkpointing="none", sharding="fsdp2", layout=TrainingLayout(data=4)
    ),
    "QLoRA, loss by parts": TrainingSpec(method="qlora", loss="linear", reentrant=False),
}
MODELS = ["qwen3-next", "gemma-3-27b", "nemotron-h-56b", "gpt-oss-20b", "llama-3.2-1b", "gpt2"]


def performed(spec: ModelSpec, training: TrainingSpec, layers: tuple[Layer, ...]) -> Step:
    step = Step(replace(spec, layers=layers), training)
    step.perform()
    return step


def told(device: Device) -> list[tuple[int, int, str, str]]:
    """Each event by size, stream, kind and name, with frees by when the block was taken."""
    taken: dict[int, int] = {}
    said = []
    for moment, number in enumerate(device.events()):
        block = device.blocks[number if number >= 0 else ~number]
        if number >= 0:
            taken[number] = moment
            said.append((block.size_bytes, block.stream, block.category, block.name.rpartition(".")[2]))
        else:
            said.append((-1, taken[~number], "", ""))
    return said


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("step", STEPS)
def test_a_stitched_step_is_the_whole_one_event_by_event(name: str, step: str) -> None:
    spec = load_model(name, revision=None, offline=True, introspect="auto")
    training = STEPS[step]
    short = shortest_stack(spec.layers)
    made = Stitches(performed(spec, training, short), short).stitched(spec.layers)
    whole = performed(spec, training, spec.layers)
    assert told(made.device) == told(whole.device)
    assert made.device.marks == whole.device.marks[: 2 * spec.num_layers - 1]
    ours, theirs = made.device.phases(with_held=False), whole.device.phases(with_held=False)
    assert ours == theirs


def test_what_a_stitched_step_reserves_is_what_the_whole_one_does() -> None:
    spec = load_model("qwen3-next", revision=None, offline=True, introspect="auto")
    training, short = TrainingSpec(checkpointing="none"), shortest_stack(spec.layers)
    made = Stitches(performed(spec, training, short), short).stitched(spec.layers)
    assert reserved_bytes(made) == reserved_bytes(performed(spec, training, spec.layers))


def test_layers_with_other_neighbours_are_not_stitched() -> None:
    spec = load_model("gpt-oss-20b", revision=None, offline=True, introspect="auto")
    first, second = spec.layers[:2]
    made = Stitches(performed(spec, TrainingSpec(), (first, second, first)), (first, second, first))
    with pytest.raises(NotAlike):
        made.stitched((first, first, second, first))


def test_layers_that_are_not_asked_for_gradients_are_not_stitched() -> None:
    spec = load_model("qwen3-next", revision=None, offline=True, introspect="auto")
    training = TrainingSpec(method="lora", checkpointing="none", lora_targets=("q_proj",))
    short = shortest_stack(spec.layers)
    with pytest.raises(NotAlike):
        Stitches(performed(spec, training, short), short)
