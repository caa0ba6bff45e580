"""Step times from the speed model: a step of equal requests takes what the speed model says that it takes."""

from __future__ import annotations

import pytest

from memplan.budget.kv_cache import kv_format
from memplan.budget.speed import serving_speed
from memplan.catalog.efficiency import efficiency_for
from memplan.catalog.gpus import find_gpu
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.serving import ParallelLayout
from memplan.domain.speed import SpeedWorkload
from memplan.pipeline import load_model, with_scheme
from memplan.simulate.clock import TICKS_PER_S, Clock
from memplan.simulate.step_times import modelled_steps

FORM = kv_format(None, DType.BF16)


@pytest.mark.parametrize("gpu_name", ["l40s", "h100"])
@pytest.mark.parametrize(
    ("layout", "error"), [(ParallelLayout(), 1e-3), (ParallelLayout(tensor=2), 1e-3), (ParallelLayout(pipeline=2), 0.2)]
)
@pytest.mark.parametrize(("batch", "context"), [(1, 1000), (64, 2000), (200, 500)])
def test_a_decode_step_takes_as_long_as_the_speed_model_says(
    gpu_name: str, layout: ParallelLayout, error: float, batch: int, context: int
) -> None:
    gpu, spec = find_gpu(gpu_name), model("llama-8b")
    efficiency = efficiency_for("vllm", gpu)
    load = SpeedWorkload(prompt_tokens=context - 100, output_tokens=200, concurrency=batch)
    expected = serving_speed(spec, gpu, layout, FORM, DType.BF16, load, efficiency).step_s
    clock = Clock(modelled_steps(spec, gpu, layout, FORM, DType.BF16, efficiency))
    assert clock.step(batch, batch * context, ()) / TICKS_PER_S == pytest.approx(expected, rel=error)


@pytest.mark.parametrize("name", ["llama-8b", "gemma-2-9b", "mixtral-8x7b"])
def test_a_prompt_takes_as_long_as_the_speed_model_says(name: str) -> None:
    gpu, spec = find_gpu("h100"), with_scheme(model(name), "fp8")
    efficiency = efficiency_for("vllm", gpu)
    load = SpeedWorkload(prompt_tokens=4000, output_tokens=1)
    expected = serving_speed(spec, gpu, ParallelLayout(), FORM, DType.BF16, load, efficiency)
    clock = Clock(modelled_steps(spec, gpu, ParallelLayout(), FORM, DType.BF16, efficiency))
    assert clock.step(0, 0, [(0, 4000)]) / TICKS_PER_S == pytest.approx(1 / expected.request_per_s, rel=0.02)


def model(name: str) -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")
