"""What FP8 products keep and take: against torchao's own code where it is installed (benchmarks/training)."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from memplan.budget.training.autograd import Graph, Parameter
from memplan.budget.training.device import Device
from memplan.budget.training.float8 import Float8
from memplan.budget.training.linear import Linear
from memplan.budget.training.periodic import run_step
from memplan.budget.training.step import Step
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.pipeline import load_model
from memplan.records import replace

ROWS, INPUTS, OUTPUTS = 4096, 2048, 1024
READ, WEIGHT = ROWS * INPUTS, INPUTS * OUTPUTS


def run(float8: Float8 | None) -> tuple[int, int, int]:
    """Of one product: what stays after the forward pass, its most, and the most of the backward pass, beside what was
    there before.
    """
    device = Device()
    graph = Graph(device)
    device.begin("load")
    weight = Parameter("weight", WEIGHT * 2, WEIGHT * 2, lambda parameter, block: device.free(block), WEIGHT)
    layer = Linear(name="product", inputs=INPUTS, outputs=OUTPUTS, weight=weight, float8=float8)
    entering = graph.tensor(READ * 2, "entering", needs_grad=True)
    device.begin("forward")
    made = layer.run(graph, entering, ROWS, 2)
    graph.drop(entering)
    device.begin("backward")
    graph.backward(made)
    _, forward, backward = device.phases()
    return forward.after_bytes, forward.peak_bytes - READ * 2, backward.peak_bytes


def test_torchaos_products_keep_what_plain_ones_keep() -> None:
    plain = run(None)[0]
    for recipe in ("tensorwise", "rowwise"):
        for is_compiled in (False, True):
            assert run(Float8(recipe=recipe, is_compiled=is_compiled))[0] == plain


def test_a_cast_without_a_compiler_takes_nine_bytes_an_element_and_one_with_it() -> None:
    assert run(Float8(recipe="tensorwise"))[1] == 9 * READ
    assert run(Float8(recipe="tensorwise", is_compiled=True))[1] == READ + WEIGHT + ROWS * OUTPUTS * 2


def test_scales_of_rows_and_columns_are_a_matrix_without_a_compiler() -> None:
    by_tensor, by_row = run(Float8(recipe="tensorwise")), run(Float8(recipe="rowwise"))
    assert by_row[1] == by_tensor[1]
    assert by_row[2] >= by_tensor[2]


def test_transformer_engine_keeps_the_input_in_8_bits_and_the_weight_twice() -> None:
    plain, delayed = run(None)[0], run(Float8(recipe="delayed"))[0]
    assert plain == READ * 2 + ROWS * OUTPUTS * 2
    assert delayed == READ + 2 * WEIGHT + ROWS * OUTPUTS * 2


@cache
def small_llama() -> ModelSpec:
    spec = load_model("llama-3.2-1b", revision=None, offline=True, introspect="auto")
    return replace(spec, layers=spec.layers[:4])


def step_of(**fields: Any) -> TrainingSpec:
    usual: dict[str, Any] = {
        "weight_bytes": 4,
        "grad_bytes": 4,
        "state_bytes": 4,
        "sharding": "fsdp2",
        "layout": TrainingLayout(data=4),
        "kernels": "compiled",
        "reentrant": False,
        "splits_outside": True,
    }
    return TrainingSpec(**{**usual, **fields})


def test_weights_that_are_cast_before_they_are_gathered_take_half_of_it() -> None:
    def gathered(recipe: Any) -> int:
        step = Step(small_llama(), step_of(float8=recipe))
        step.run()
        buffers = [
            each.size_bytes
            for each in step.device.blocks
            if each.name == "gathered" and each.category == "communication buffers"
        ]
        return max(set(buffers), key=buffers.count)  # a layer's

    layer = small_llama().layers[0]
    matrices = sum(each.num_elements for each in layer.tensors if len(each.shape) == 2)
    assert gathered("tensorwise") - gathered("tensorwise-gather") == matrices
    assert gathered("tensorwise") == gathered(None)


@pytest.mark.parametrize("recipe", ["tensorwise", "tensorwise-gather", "rowwise", "delayed"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_deep_models_are_known_from_short_ones_in_fp8_too(recipe: Any, checkpointing: Any) -> None:
    spec = replace(small_llama(), layers=small_llama().layers[:1] * 12)
    training = step_of(float8=recipe, checkpointing=checkpointing, kernels="transformers")
    whole = max(each.peak_bytes for each in Step(spec, training).run())
    assert run_step(spec, training).peak.peak_bytes == whole
