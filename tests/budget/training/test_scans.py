"""Recurrent mixers in a training step: what their kernels keep, by width, by chunk and by head."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from memplan.budget.training.periodic import run_step
from memplan.budget.training.step import Step
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.errors import UnsupportedModel
from memplan.pipeline import load_model
from memplan.records import replace

TOKENS = 2048
MODELS = ("mamba-2.8b", "codestral-mamba", "qwen3.5-0.8b", "qwen3-next", "granite-4.0-h-tiny", "nemotron-h-56b")


@cache
def model(name: str) -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")


def training(**fields: Any) -> TrainingSpec:
    usual: dict[str, Any] = {"sequence_tokens": TOKENS, "checkpointing": "none", "reentrant": False}
    return TrainingSpec(**{**usual, "loss": "plain-flat", **fields})


def kept(name: str, **fields: Any) -> dict[str, int]:
    """What the last step's forward pass leaves, by operator; of one layer of a kind."""
    spec = model(name)
    step = Step(replace(spec, layers=spec.layers[:1]), training(**fields))
    _, forward, backward, _ = step.run()
    assert forward.after_bytes <= backward.peak_bytes
    return {part: size for (_, part), size in backward.held.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_models_with_recurrent_layers_are_trained(name: str, method: Any) -> None:
    targets = ("in_proj", "in_proj_qkv", "in_proj_qkvz") if method == "lora" else ()
    peak = run_step(model(name), training(method=method, lora_targets=targets)).peak
    assert peak.peak_bytes > 2 * model(name).parameters


def test_mamba_2_keeps_what_it_projects_and_what_it_normalises() -> None:
    inner, groups = 8192, 8
    held = kept("codestral-mamba", loss="linear", method="lora", lora_targets=("in_proj",), lora_rank=1)
    assert held.get("state space scan", 0) >= TOKENS * inner * 2 + TOKENS * groups * 4 - 1024


def test_a_state_is_kept_for_no_token() -> None:
    """A longer sequence grows what a layer keeps in proportion, whatever its states are."""
    spec = replace(model("qwen3-next"), layers=model("qwen3-next").layers[:1])
    levels = []
    for tokens in (TOKENS, 2 * TOKENS, 3 * TOKENS):
        step = Step(spec, training(sequence_tokens=tokens, loss="linear"))
        _, forward, _, _ = step.run()
        levels.append(forward.after_bytes)
    assert levels[2] - levels[1] == pytest.approx(levels[1] - levels[0], rel=1e-3)


@pytest.mark.parametrize("name", ["mamba-2.8b", "codestral-mamba", "qwen3-next"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_deep_recurrent_models_are_known_from_short_ones(name: str, checkpointing: Any) -> None:
    spec = model(name)
    asked = training(checkpointing=checkpointing, micro_batch=2)
    short = replace(spec, layers=spec.layers[:24])
    whole = max(each.peak_bytes for each in Step(short, asked).run())
    assert run_step(short, asked).peak.peak_bytes == pytest.approx(whole, rel=1e-6)


def test_a_state_in_fp32_between_layers_takes_twice_as_much_under_checkpointing() -> None:
    spec = model("codestral-mamba")
    shallow, deep = (
        Step(replace(spec, layers=spec.layers[:count]), training(checkpointing="full")).run()[1].after_bytes
        for count in (4, 5)
    )
    weights = sum(each.num_parameters for each in spec.layers[0].tensors) * (2 + 4)  # and two moments
    assert deep - shallow - weights == pytest.approx(TOKENS * spec.hidden_size * 4, rel=0.01)


def test_recurrent_layers_are_not_cut_by_tensors() -> None:
    with pytest.raises(UnsupportedModel, match="mamba2"):
        run_step(model("codestral-mamba"), training(layout=TrainingLayout(tensor=2)))
