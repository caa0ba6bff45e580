"""The time of a step beside runs that were published, and how it grows."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.budget.training.step_time import StepTime, forward_flops, step_time
from memplan.catalog.efficiency import efficiency_for
from memplan.catalog.gpus import find_gpu
from memplan.domain.model import ModelSpec
from memplan.domain.training_question import TrainingQuestion
from memplan.engines.training.choose import choose_training
from memplan.engines.training.held import trained_parameters
from memplan.pipeline import load_model

# Tokens a second and GPU as published: torchtitan, docs/performance.md (H100 limited to 500 W, not compiled);
# KempnerForge, docs/reference/benchmarks.md (H200, four to a machine).
PUBLISHED = [
    ("llama-8b", "h100", 8, 5762, {"micro_batch": 2, "sequence_tokens": 8192, "checkpointing": "selective"}),
    ("llama-8b", "a100-80g", 64, 2973, {"sequence_tokens": 8192, "checkpointing": "selective"}),
    ("llama-70b", "a100-80g", 64, 331, {"sequence_tokens": 8192, "checkpointing": "full"}),
    ("llama-405b", "h100", 128, 109, {"micro_batch": 2, "sequence_tokens": 8192, "checkpointing": "full", "tensor": 8}),
    ("llama-8b", "h200", 1, 10471, {"sequence_tokens": 4096, "checkpointing": "full"}),
    ("llama-8b", "h200", 4, 9746, {"sequence_tokens": 4096, "checkpointing": "full"}),
]


def timed(model: str, gpu_name: str, count: int, **fields: Any) -> StepTime:
    spec, gpu = loaded(model), find_gpu(gpu_name)
    question = TrainingQuestion(**{"method": "full", "trainer": "torchtitan", "num_gpus": count, **fields})
    training = choose_training(question, spec, gpu)
    found = step_time(spec, training, trained_parameters(spec, training), gpu, efficiency_for("transformers", gpu))
    assert found is not None
    return found


def loaded(model: str) -> ModelSpec:
    return load_model(model, revision=None, offline=True, introspect="auto")


@pytest.mark.parametrize(("model", "gpu", "count", "published", "fields"), PUBLISHED)
def test_a_published_run_is_met_within_a_factor_of_1_7(
    model: str, gpu: str, count: int, published: float, fields: dict[str, Any]
) -> None:
    ours = timed(model, gpu, count, **fields).tokens_per_s / count
    assert published / 1.7 <= ours <= published * 1.7


def test_a_forward_pass_multiplies_every_weight_but_the_embedding() -> None:
    spec = loaded("llama-8b")
    embedding = 128256 * 4096
    assert forward_flops(spec, 0) == pytest.approx(2 * (spec.parameters - embedding), rel=1e-4)
    assert forward_flops(spec, 8192) - forward_flops(spec, 0) == 2 * 8192 * 4096 * 32


def test_parts_sum_to_the_step_and_mfu_counts_three_forwards() -> None:
    step = timed("llama-8b", "h100", 8, sequence_tokens=4096, checkpointing="full")
    parts = (step.compute_s, step.recompute_s, step.communication_s, step.bubble_s, step.optimizer_s, step.offload_s)
    assert step.total_s == pytest.approx(sum(parts))
    flops = 3 * step.tokens * forward_flops(loaded("llama-8b"), 4096)
    assert step.mfu == pytest.approx(flops / step.total_s / (8 * find_gpu("h100").flops_per_s["bf16"]))


def test_what_takes_longer_is_told_longer() -> None:
    base = timed("llama-8b", "h100", 8, sequence_tokens=4096, checkpointing="none")
    again = timed("llama-8b", "h100", 8, sequence_tokens=4096, checkpointing="full")
    assert again.recompute_s == pytest.approx(again.compute_s / 3)
    assert base.recompute_s == 0
    fsdp = {"trainer": "transformers", "sharding": "fsdp2", "sequence_tokens": 4096}
    offloaded = timed("llama-8b", "h100", 8, **fsdp, offloaded=("optimizer", "parameters"))
    assert offloaded.offload_s > 1.0
    stages = timed("llama-70b", "h100", 8, sequence_tokens=4096, pipeline=4, data=2, accumulation=8)
    assert stages.bubble_s == pytest.approx(3 / 8 * (stages.compute_s + stages.recompute_s))
    lora = timed("llama-8b", "h100", 1, trainer="transformers", method="lora", sequence_tokens=4096)
    full = timed("llama-8b", "h100", 1, trainer="transformers", sequence_tokens=4096)
    assert lora.compute_s == pytest.approx(full.compute_s * 2 / 3)
