"""DeepSpeed's own estimates of model states beside the budget, where they are right, and what they leave out.

MEMPLAN_DEEPSPEED_PYTHON names an interpreter that has DeepSpeed; its functions are called there.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from typing import Any

import pytest

from memplan.catalog.gpus import find_gpu
from memplan.domain.model import ModelSpec
from memplan.domain.training_budget import TrainingBudget
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.answer import TrainingAsked, answer_training
from memplan.engines.training.held import largest_tensor
from memplan.pipeline import load_model

ASK = """
import json, sys
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as second
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as third
total, largest = map(int, sys.argv[1:3])
found = {}
for ranks in (1, 2, 4, 8):
    found[f"zero2 {ranks}"] = second(total, ranks, 1, cpu_offload=False)[1]
    found[f"zero3 {ranks}"] = third(total, largest, ranks, 1, cpu_offload=False, cpu_offload_params=False)[1]
print(json.dumps(found))
"""


@cache
def model() -> ModelSpec:
    return load_model("llama-3.1-8b", revision=None, offline=True, introspect="auto")


@cache
def told() -> dict[str, int]:
    python = os.environ.get("MEMPLAN_DEEPSPEED_PYTHON")
    if not python:
        pytest.skip("MEMPLAN_DEEPSPEED_PYTHON is not set: no DeepSpeed at hand")
    sizes = [str(model().parameters), str(largest_tensor(model()))]
    done = subprocess.run([python, "-c", ASK, *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def budget(sharding: Any, ranks: int, **asked: Any) -> TrainingBudget:
    fields = {"method": "full", "checkpointing": "full", **asked}
    question = TrainingQuestion(trainer="deepspeed", sharding=sharding, num_gpus=ranks, **fields)
    return answer_training(TrainingAsked(spec=model(), gpu=find_gpu("h200"), question=question, with_remedies=False))


def states(answer: TrainingBudget) -> int:
    """Weights, gradients in 16 bits and in FP32, moments and masters at the optimizer's step."""
    kept = ("weights", "gradients", "optimizer_state")
    held = answer.phases[3].held
    return sum(each.size_bytes for each in held if each.category in kept or each.name == "gradients in FP32")


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_states_of_stage_2_are_deepspeeds_own(ranks: int) -> None:
    assert states(budget("zero2", ranks)) == pytest.approx(told()[f"zero2 {ranks}"], rel=0.01)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_states_of_stage_3_are_deepspeeds_own_with_the_weights_that_it_leaves_out(ranks: int) -> None:
    """Its 18 B are those of stage 2, where weights are counted beside them: here they are 2 B of the part. FP32
    gradients are made for a sub-group of 10^9 at a time, not for the whole part.
    """
    part = model().parameters / ranks
    in_parts = 4 * (part - min(part, 10**9))
    without_largest = told()[f"zero3 {ranks}"] - 4 * largest_tensor(model())
    assert states(budget("zero3", ranks)) == pytest.approx(without_largest + 2 * part - in_parts, rel=0.01)


def test_the_formula_knows_no_adapters() -> None:
    """For LoRA it would take all weights for trained: five times what is held."""
    answer = budget("zero2", 8, method="lora")
    held = states(answer)
    frozen, trained = model().parameters, answer.trained_parameters
    assert held < 1.02 * (2 * frozen + 16 * trained)
    assert told()["zero2 8"] > 1.9 * held
