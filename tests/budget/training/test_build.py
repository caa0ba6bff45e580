"""Layers of a training step from a model's tensors: nothing of the model is left out, and what is not modelled is
refused.
"""

from __future__ import annotations

import pytest

from memplan.budget.training.families import FAMILIES, kernels_of
from memplan.budget.training.kernels import Kernels
from memplan.budget.training.step import Step
from memplan.domain.model import ModelSpec
from memplan.domain.training import TrainingLayout, TrainingSpec
from memplan.errors import UnsupportedModel, UsageError
from memplan.pipeline import load_model
from memplan.records import replace


def model(name: str) -> ModelSpec:
    return load_model(name, revision=None, offline=True, introspect="auto")


def weights_bytes(spec: ModelSpec, training: TrainingSpec) -> int:
    load = Step(spec, training).run()[0]
    return sum(size for (category, _), size in load.held.items() if category == "weights")


@pytest.mark.parametrize(
    "name",
    [
        "llama-3.1-8b",
        "qwen2.5-7b",
        "qwen3-30b-a3b",
        "gemma-3-4b",
        "phi-2",
        "pythia-1.4b",
        "gpt2-medium",
        "falcon-7b",
        "bloom-7b1",
        "starcoder2-3b",
        "olmo-2-7b",
        "command-r7b",
        "mixtral-8x7b",
        "deepseek-v2-lite",
        "minicpm3-4b",
        "lfm2-1.2b",
    ],
)
def test_every_parameter_of_a_model_is_loaded(name: str) -> None:
    spec = model(name)
    assert weights_bytes(spec, TrainingSpec(weight_bytes=2)) == pytest.approx(2 * spec.parameters, rel=0.001)


@pytest.mark.parametrize("name", ["jamba-mini", "deepseek-v3.2"])
def test_layers_that_are_not_modelled_are_refused_by_their_kind(name: str) -> None:
    with pytest.raises(UnsupportedModel, match=r"training is not modelled for `\w+` layers") as caught:
        Step(model(name), TrainingSpec())
    assert "memplan profile" in str(caught.value.hint)


def test_adapters_beside_layers_that_no_model_has_are_refused() -> None:
    with pytest.raises(UsageError, match="no linear layer to put an adapter beside is named c_attn"):
        Step(model("llama-3.1-8b"), TrainingSpec(method="lora", lora_targets=("c_attn",)))


def test_a_family_with_biases_in_its_norms_runs_layer_norm() -> None:
    spec = model("starcoder2-3b")
    assert "starcoder2" not in FAMILIES
    assert kernels_of(spec, TrainingSpec(), Kernels()).norm == "layer"
    assert kernels_of(model("llama-3.1-8b"), TrainingSpec(), Kernels()).norm == "eager"


def test_a_trainers_own_kernels_replace_those_of_a_family() -> None:
    made = kernels_of(model("gemma-2-2b"), TrainingSpec(kernels="fused"), Kernels(norm="fused", rotary="fused"))
    assert (made.norm, made.rotary) == ("fused", "fused")


@pytest.mark.parametrize("tokens", [256, 2048])
def test_a_window_costs_a_mask_only_where_the_text_is_longer(tokens: int) -> None:
    spec = model("gemma-3-1b")
    training = TrainingSpec(attention="sdpa", sequence_tokens=tokens, checkpointing="none")
    held = {name for phase in Step(spec, training).run() for _, name in phase.held}
    # One key head serves all query heads: only PyTorch's kernel that takes masks wants them side by side.
    assert ("mask" in held) == (tokens > 512)


def test_a_kv_cache_beside_training_copies_keys_and_lets_their_fused_projection_go() -> None:
    spec = model("phi-3-mini")
    plain = TrainingSpec(checkpointing="none")
    kept = [Step(spec, each).run()[1].peak_bytes for each in (plain, replace(plain, caches_keys=True))]
    # Queries and keys lie in the fused matrix beside their rotated copies; values are copied in either form.
    queries_bytes = spec.num_layers * plain.sequence_tokens * spec.hidden_size * 2
    assert kept[0] - kept[1] == pytest.approx(2 * queries_bytes, rel=0.05)


def test_norms_in_float_before_4_bit_layers_make_what_is_checkpointed_twice_as_large():
    spec = load_model("llama-3.2-1b", revision=None, offline=True, introspect="auto")
    step = TrainingSpec(method="qlora", sequence_tokens=2048, checkpointing="full", autocast=True, loss="linear")
    narrow, wide = (
        next(each for each in Step(spec, replace(step, wide_state=is_wide)).run() if each.name == "forward").after_bytes
        for is_wide in (False, True)
    )
    one_state = 2048 * spec.hidden_size * 2
    assert abs(wide - narrow - (spec.num_layers - 1) * one_state) <= 2 * one_state


def test_expert_parallelism_moves_experts_and_keeps_what_a_rank_holds_of_them():
    spec = model("olmoe-1b-7b")
    step = TrainingSpec(sharding="fsdp2", layout=TrainingLayout(data=8), sequence_tokens=1024, dispatches_experts=True)
    apart = replace(step, layout=TrainingLayout(data=8, expert=4))
    whole, cut = (Step(spec, each).run() for each in (step, apart))
    assert abs(cut[0].after_bytes - whole[0].after_bytes) < 0.01 * whole[0].after_bytes
    gathered = [sum(size for (name, _), size in each[1].held.items() if "gathered" in name) for each in (whole, cut)]
    assert gathered[1] < gathered[0] / 2
