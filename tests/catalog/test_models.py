"""The model catalogue: every entry builds to exactly its parameters, and names lead where they should."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from memplan.catalog import models
from memplan.catalog.models import MODELS_FOLDER, find_model, list_models, search_models, suggest_models, unfold
from memplan.catalog.quant_schemes import parse_scheme
from memplan.catalog.slices import read_slices
from memplan.catalog.tables import parse_yaml
from memplan.introspect.model_folder import spec_from_config

ALL = list_models()
FILES = sorted(MODELS_FOLDER.glob("*.yaml"))

# Published sizes, written out here so that a slip in the catalogue and a slip in a family cannot cancel out.
PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.1-405B-Instruct": 405_853_388_800,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "mistralai/Mistral-Large-Instruct-2407": 122_610_069_504,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46_702_792_704,
    "mistralai/Mixtral-8x22B-Instruct-v0.1": 140_630_071_296,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-12b-it": 12_187_325_040,
    "microsoft/phi-4": 14_659_507_200,
    "facebook/opt-125m": 125_239_296,
    "EleutherAI/gpt-neox-20b": 20_554_567_680,
    "EleutherAI/pythia-12b": 11_846_072_320,
    "tiiuae/falcon-7b": 6_921_720_704,
    "bigcode/starcoder2-15b": 15_957_889_024,
    "CohereLabs/c4ai-command-a-03-2025": 111_057_580_032,
    "llava-hf/llava-v1.6-mistral-7b-hf": 7_566_747_648,
    "openai/whisper-large-v3-turbo": 808_878_080,
    "BAAI/bge-large-en-v1.5": 335_141_888,
}

NAMES = {
    "llama-70b": "meta-llama/Llama-3.3-70B-Instruct",
    "llama-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
    "Llama 3.1 8B": "meta-llama/Llama-3.1-8B-Instruct",
    "llama3.1:8b": "meta-llama/Llama-3.1-8B-Instruct",
    "META-LLAMA/Llama-3.1-8b-instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-8B": "meta-llama/Llama-3.1-8B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen-32b": "Qwen/Qwen3-32B",
    "qwen2-57b": "Qwen/Qwen2-57B-A14B-Instruct",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B-Instruct",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
    "mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.3",
    "opt-125m": "facebook/opt-125m",
    "phi": "microsoft/phi-4",
    "Qwen/Qwen2.5-14B-Instruct-AWQ": "Qwen/Qwen2.5-14B-Instruct",
    "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4": "meta-llama/Llama-3.1-8B-Instruct",
}


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.name)
def test_every_entry_builds_to_exactly_its_parameters(model: models.CatalogModel) -> None:
    spec = spec_from_config(model.config, model.name)
    assert spec.parameters == model.parameters
    assert spec.num_layers > 0


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_well_known_models_have_their_published_size(name: str, parameters: int) -> None:
    model = find_model(name)
    assert model is not None
    assert model.parameters == parameters


@pytest.mark.parametrize(("name", "hub_id"), NAMES.items())
def test_a_name_means_the_model_it_should(name: str, hub_id: str) -> None:
    model = find_model(name)
    assert model is not None
    assert model.name == hub_id


def test_the_catalogue_has_the_models_that_people_use() -> None:
    assert len(ALL) >= 400
    assert len({model.config["model_type"] for model in ALL}) >= 60


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.name)
def test_every_entry_is_well_formed(model: models.CatalogModel) -> None:
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.name)
    assert model.source
    assert not model.released or re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", model.released)
    assert model.config["model_type"]
    for scheme, ids in model.quantized.items():
        assert parse_scheme(scheme).name == scheme
        assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", known) for known in ids)


def test_no_name_belongs_to_two_models() -> None:
    owners = defaultdict(set)
    for path in FILES:
        slices = read_slices(path)
        for key, how, name in slices.names():
            owners[slices.fold(name)].add(key)
            assert how == "key" or name == name.lower(), f"{name} is not small"
    for model in ALL:
        for ids in model.quantized.values():
            for known in ids:
                key = known.lower().encode()
                owners[key] |= {model.name} - ({model.name} if key in owners else set())
    shared = {name: keys for name, keys in owners.items() if len(keys) > 1}
    assert shared == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_slice_reads_as_in_the_whole_file(path: object) -> None:
    slices = read_slices(path)  # type: ignore[arg-type]
    whole = parse_yaml(path.read_text(), path.name)  # type: ignore[attr-defined]
    assert slices.entry_keys() == list(whole)
    for key, entry in whole.items():
        assert slices.entry(key) == entry


@pytest.mark.parametrize("model", ALL, ids=lambda model: model.name)
def test_every_model_is_found_by_all_its_names(model: models.CatalogModel) -> None:
    for name in (model.name, *model.aliases):
        found = find_model(name)
        assert found is not None
        assert found.name == model.name
        assert found.resolved_note == ""
    for name in model.bare:
        found = find_model(name)
        assert found is not None
        assert found.name == model.name
        assert f"{name}: taken as {model.name}" in found.resolved_note


def test_a_published_checkpoint_is_its_base_model_in_its_scheme() -> None:
    model = find_model("neuralmagic/Meta-Llama-3.1-70B-Instruct-quantized.w8a8")
    assert model is not None
    assert model.name == "meta-llama/Llama-3.1-70B-Instruct"
    assert model.scheme == "w8a8-int8"
    assert model.published_id == "neuralmagic/Meta-Llama-3.1-70B-Instruct-quantized.w8a8"


def test_a_published_checkpoint_in_another_scheme_does_not_keep_the_base_models_own_quantization() -> None:
    native, awq = find_model("deepseek-ai/DeepSeek-V3"), find_model("cognitivecomputations/DeepSeek-V3-AWQ")
    assert native is not None
    assert awq is not None
    assert "quantization_config" in native.config
    assert awq.scheme == "awq-int4-g128"
    assert "quantization_config" not in awq.config


def test_a_copy_under_another_organisation_is_taken_as_the_original() -> None:
    copy = find_model("unsloth/Llama-3.1-70B-Instruct")
    assert copy is not None
    assert copy.name == "meta-llama/Llama-3.1-70B-Instruct"
    assert "taken as a copy of" in copy.resolved_note
    small = find_model("unsloth/Qwen2.5-7B-Instruct-bnb-4bit")
    assert small is not None
    assert (small.name, small.scheme) == ("Qwen/Qwen2.5-7B-Instruct", "bnb-nf4")


def test_a_model_like_another_has_its_config_and_its_own_differences() -> None:
    base, other = find_model("zai-org/GLM-4.5"), find_model("zai-org/GLM-4.6")
    assert base is not None
    assert other is not None
    assert {**base.config, "max_position_embeddings": 202752} == other.config


def test_an_unknown_name_is_not_guessed_but_the_nearest_are_named() -> None:
    for name in ("", "no-such-model", "lama-3.1-8b", "org/llama-3.1-8b", "hidden-size", "aliases"):
        assert find_model(name) is None
    assert "llama-3.1-8b" in (suggest_models("lama-3.1-8b") or "")
    assert suggest_models("zzzzzzzzzzzzzz") is None


def test_search_finds_by_all_the_words_that_are_given() -> None:
    assert "Qwen/Qwen3-30B-A3B-FP8" in {model.name for model in search_models("qwen3 fp8")}
    assert all("coder" in model.name.lower() for model in search_models("qwen2.5-coder 7b"))
    assert search_models("no such model") == ()


def test_shorthand_is_written_out() -> None:
    assert unfold({"cycle": ["a", "a", "b"], "length": 5}) == ["a", "a", "b", "a", "a"]
    assert unfold({"runs": [[2, "a"], [1, {"b": 1}]]}) == ["a", "a", {"b": 1}]
    assert unfold({"x": {"l.<0-1,3>.e.<5>.w": 1}}) == {"x": {"l.0.e.5.w": 1, "l.1.e.5.w": 1, "l.3.e.5.w": 1}}
    assert unfold([1, {"cycle": 2}]) == [1, {"cycle": 2}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_number_of_a_config_is_read_as_a_word(path: Path) -> None:
    slices = read_slices(path)
    words = {word for key in slices.entry_keys() for word in _words(slices.entry(key))}
    assert [word for word in words if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word)] == []


def _words(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _words(item)
