"""Known decoders: their parameters, and what they keep for a token and for a sequence.

The facts are one JSON object a model: how they were checked, what its config says that its class would not, and what
follows. Lists with a pattern are stored as `cycle` and `length`, or as `runs`.
"""

from importlib import import_module

import pytest
from decoder_cases import FACTS, Raw, fact_label, read_fact, state_elements

from memplan.budget.kv_cache import growing_token_bytes, kv_format, model_token_bytes
from memplan.domain.attention import SharedKV
from memplan.domain.dtypes import DType
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.families.decoders import DECODERS

F16 = kv_format("float16", DType.F16)
# Other names of a family that has facts, and families that are held against transformers alone.
ALIASES = {
    "aquila": "llama",
    "code_llama": "llama",
    "solar": "llama",
    "telechat3": "llama",
    "TeleFLM": "llama",
    "step1": "llama",
    "bailing_moe_v2": "bailing_moe",
    "param2moe": "bailing_moe",
    "sarvam_moe": "bailing_moe",
    "gpt-sw3": "gpt2",
    "grok": "grok-1",
    "mimo_v2": "mimo_v2_flash",
    "minimax_text_01": "minimax_m1",
    "stablelm_epoch": "stablelm",
}
AGAINST_TRANSFORMERS = {"gemma3n_text", "ministral", "mistral4", "qwen3_vl_moe_text", "qwen3_vl_text", "qwen4_exp_text"}


def fact_of(name: str) -> Raw:
    return next(fact for fact in FACTS if fact["name"] == name)


@pytest.mark.parametrize("fact", FACTS, ids=fact_label)
def test_a_known_decoder_has_its_parameters(fact: Raw) -> None:
    assert read_fact(fact).parameters == fact["parameters"]


@pytest.mark.parametrize("fact", FACTS, ids=fact_label)
def test_a_known_decoder_keeps_as_many_bytes_for_a_token(fact: Raw) -> None:
    spec = read_fact(fact)
    assert model_token_bytes(spec, F16) == fact["kv_bytes_per_token"]
    assert growing_token_bytes(spec, F16) == fact["growing_kv_bytes_per_token"]


@pytest.mark.parametrize("fact", FACTS, ids=fact_label)
def test_a_known_decoder_keeps_as_large_a_state_for_a_sequence(fact: Raw) -> None:
    spec = read_fact(fact)
    assert sum(state_elements(layer.caches) for layer in spec.layers) == fact.get("state_elements", 0)


@pytest.mark.parametrize("fact", [fact for fact in FACTS if "mtp_elements" in fact], ids=fact_label)
def test_the_predictors_of_a_known_decoder_stand_apart(fact: Raw) -> None:
    assert sum(tensor.num_elements for tensor in read_fact(fact).mtp) == fact["mtp_elements"]


@pytest.mark.parametrize("fact", FACTS, ids=fact_label)
def test_every_tensor_of_a_known_decoder_has_a_name_of_its_own(fact: Raw) -> None:
    spec = read_fact(fact)
    for layer in {id(layer): layer for layer in spec.layers}.values():
        names = [tensor.name for tensor in layer.tensors]
        assert len(set(names)) == len(names)
        assert all(tensor.shape and min(tensor.shape) > 0 and tensor.count > 0 for tensor in layer.tensors)
    around = [tensor.name for tensor in (*spec.shared, *spec.mtp)]
    assert len(set(around)) == len(around)


@pytest.mark.parametrize("fact", FACTS, ids=fact_label)
def test_shared_caches_point_at_an_earlier_layer_that_keeps_one(fact: Raw) -> None:
    layers = read_fact(fact).layers
    for index, layer in enumerate(layers):
        for cache in layer.caches:
            if isinstance(cache, SharedKV):
                assert cache.source_layer < index
                assert not any(isinstance(kept, SharedKV) for kept in layers[cache.source_layer].caches)


def test_equal_layers_are_one_object() -> None:
    layers = read_fact(fact_of("deepseek-ai/DeepSeek-R1")).layers
    assert len(layers) == 61
    assert len({id(layer) for layer in layers}) == 2


@pytest.mark.parametrize("entry", sorted(set(DECODERS.values())))
def test_every_registered_builder_can_be_imported(entry: str) -> None:
    module, _, name = entry.partition(":")
    assert callable(getattr(import_module(f"memplan.introspect.families.{module}"), name))


def test_every_family_has_facts_or_is_another_name_or_is_held_against_transformers() -> None:
    seen = {fact["config"]["model_type"] for fact in FACTS} | AGAINST_TRANSFORMERS  # type: ignore[index]
    assert {ALIASES.get(family, family) for family in DECODERS} <= seen


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_another_name_of_a_family_is_read_alike(alias: str) -> None:
    fact = next(fact for fact in FACTS if fact["config"]["model_type"] == ALIASES[alias])  # type: ignore[index]
    renamed = build_spec(Config({**fact["config"], "model_type": alias}), alias)  # type: ignore[dict-item]
    assert renamed.parameters == fact["parameters"]
