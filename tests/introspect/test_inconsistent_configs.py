"""Configs whose numbers contradict each other are refused by the keys that do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memplan.catalog.models import find_model, list_models
from memplan.errors import UnsupportedModel
from memplan.introspect.consistency import check_consistent
from memplan.introspect.model_folder import spec_from_config
from memplan.introspect.resolve import resolve_model

DENSE = dict(find_model("Qwen/Qwen3-0.6B").config)  # type: ignore[union-attr]
ROUTED = dict(find_model("Qwen/Qwen3-30B-A3B").config)  # type: ignore[union-attr]
VISION = dict(find_model("google/gemma-3-27b-it").config)  # type: ignore[union-attr]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({**DENSE, "num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({**DENSE, "num_attention_heads": 4, "num_key_value_heads": 8}, "num_key_value_heads"),
        ({**ROUTED, "num_experts": 8, "num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({**DENSE, "layer_types": ["full_attention"] * 27}, "layer_types"),
        ({**DENSE, "layer_types": ["full_attention"] * 29}, "layer_types"),
        ({**VISION, "text_config": {**VISION["text_config"], "num_key_value_heads": 5}}, "text_config.num_key_value"),  # type: ignore[dict-item]
        ({**DENSE, "quantization_config": {**GPTQ, "bits": 5}}, "quantization_config.bits"),
        (
            {**DENSE, "quantization_config": {**GPTQ, "dynamic": {"model.layers.0": {"bits": 6}}}},
            "quantization_config.bits",
        ),
    ],
)
def test_numbers_that_contradict_each_other_are_refused_by_name(raw: dict[str, object], named: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"config key `{named}") as caught:
        spec_from_config(raw, "odd")
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_a_folder_with_such_a_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**DENSE, "num_attention_heads": 4, "num_key_value_heads": 3}))
    with pytest.raises(UnsupportedModel, match="`num_attention_heads` 4 does not divide by it"):
        resolve_model(str(tmp_path), offline=True)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_width_that_gptq_packs_is_read(bits: int) -> None:
    spec = spec_from_config({**DENSE, "quantization_config": {**GPTQ, "bits": bits}}, "packed")
    assert spec.quantization is not None


def test_every_config_of_the_catalogue_agrees_with_itself() -> None:
    for model in list_models():
        check_consistent(model.config)


def test_configs_nested_deeper_than_any_model_s_are_not_followed() -> None:
    raw: dict[str, object] = {"num_attention_heads": 4, "num_key_value_heads": 3}
    for _ in range(2000):
        raw = {"text_config": raw}
    check_consistent(raw)
