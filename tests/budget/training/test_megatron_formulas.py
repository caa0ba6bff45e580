"""Megatron's arithmetic beside the budget: bytes of a parameter, and activations by Korthikanti et al. 2022
(arXiv:2205.05198): s tokens of b sequences, hidden size h, L layers, t tensor-parallel ranks, p stages of v parts.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from memplan.budget.training.device import Held
from memplan.budget.training.step import Step
from memplan.catalog.gpus import find_gpu
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingSpec
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.choose import choose_training
from memplan.pipeline import load_model
from memplan.records import replace

LOSS = ("logits", "loss", "log-softmax")


@cache
def model(name: str) -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")


def training(name: str, **asked: Any) -> TrainingSpec:
    question = TrainingQuestion(**{"method": "full", "trainer": "megatron", "sequence_tokens": 1024, **asked})
    return choose_training(question, model(name), find_gpu("h100"))


def alive_after_forward(step: Step) -> Held:
    device = step.device
    found: Held = {}
    for number in device.events()[: device.starts[2]]:
        block = device.blocks[number if number >= 0 else ~number]
        key = (block.category, block.name)
        found[key] = found.get(key, 0) + (block.size_bytes if number >= 0 else -block.size_bytes)
    return found


def activations(name: str, training: TrainingSpec, stage: int | None = None) -> int:
    """What all layers keep for the backward pass, without the loss."""
    step = Step(model(name), training, stage)
    step.perform()
    return sum(
        size
        for (category, what), size in alive_after_forward(step).items()
        if category == "activations" and not any(word in what for word in LOSS)
    )


@pytest.mark.parametrize(("sharding", "ranks", "width"), [("ddp", 8, 18.0), ("zero1", 8, 6 + 12 / 8)])
def test_a_parameter_takes_18_bytes_or_6_and_a_part_of_12(sharding: Any, ranks: int, width: float) -> None:
    spec = model("llama-3.1-8b")
    step = Step(spec, training("llama-3.1-8b", sharding=sharding, num_gpus=ranks))
    kept = ("weights", "gradients", "optimizer state")
    held = sum(size for (category, _), size in step.run()[0].held.items() if category in kept)
    assert held == pytest.approx(width * spec.parameters, rel=0.001)


def test_a_layer_of_gpt_2_keeps_34_s_b_h_with_dropout_and_32_without() -> None:
    spec = model("gpt2-xl")
    each = 1024 * spec.hidden_size * spec.num_layers
    plain = training("gpt2-xl")
    # Sums of norms and of the attention kernel's rows are beside it.
    assert activations("gpt2-xl", plain) / each == pytest.approx(32, rel=0.005)
    assert activations("gpt2-xl", replace(plain, hidden_dropout=True)) / each == pytest.approx(34, rel=0.005)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_sequence_parallelism_divides_all_activations_by_the_tensor_parallel_ranks(ranks: int) -> None:
    whole = activations("llama-3.1-8b", training("llama-3.1-8b"))
    cut = activations("llama-3.1-8b", training("llama-3.1-8b", tensor=ranks, num_gpus=ranks))
    assert cut * ranks == pytest.approx(whole, rel=0.005)


def test_what_is_gathered_again_is_there_while_gradients_are_made_of_it() -> None:
    asked = training("llama-3.1-8b", tensor=4, num_gpus=4)
    peaks = [
        Step(model("llama-3.1-8b"), replace(asked, gathers_again=again)).run()[2].peak_bytes for again in (True, False)
    ]
    layers = model("llama-3.1-8b").num_layers
    kept = (
        2 * layers * (1 - 1 / 4) * 1024 * 4096 * 2
    )  # queries, keys and values read one, the feed-forward part the other
    assert peaks[1] - peaks[0] == pytest.approx(kept, rel=0.05)


def test_the_first_stage_holds_as_much_as_all_layers_and_interleaved_more() -> None:
    whole = activations("llama-3.1-8b", training("llama-3.1-8b"))
    asked = training("llama-3.1-8b", pipeline=4, num_gpus=4, accumulation=16)
    assert activations("llama-3.1-8b", asked, 0) == pytest.approx(whole, rel=0.005)
    interleaved = replace(asked, layout=replace(asked.layout, virtual_stages=2))
    assert activations("llama-3.1-8b", interleaved, 0) == pytest.approx((1 + 3 / (4 * 2)) * whole, rel=0.005)
