"""Weight bytes and caches by independent ways: a config's tables, a saved model's headers, transformers' modules."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memplan.budget.storage import checkpoint_bytes
from memplan.domain.attention import Cache, LinearState
from memplan.domain.model import ModelSpec
from memplan.errors import MissingExtra, UnsupportedModel
from memplan.introspect.resolve import resolve_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {"kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3_moe": {**MOE, "head_dim": 32},
    "gemma2": {"head_dim": 16, "sliding_window": 32},
    "phi3": {},
    "starcoder2": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 32},
    "deepseek_v3": {
        **MLA,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
        "n_group": 2,
        "topk_group": 1,
    },
    "mamba": {"state_size": 8, "conv_kernel": 4, "expand": 2},
    "qwen3_next": {
        **MOE,
        "head_dim": 32,
        "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}


@pytest.fixture(autouse=True)
def _quiet_transformers() -> Iterator[None]:
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="module", params=list(FAMILIES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of a family, built and saved by transformers."""
    folder = tmp_path_factory.mktemp(request.param)
    config = transformers.AutoConfig.for_model(request.param, **{**COMMON, **FAMILIES[request.param]})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def by_config(folder: Path) -> ModelSpec:
    return resolve_model(str(folder / "config.json"))


def same_but_types(caches: tuple[Cache, ...]) -> list[object]:
    """Caches without the element types of states, which are an engine's choice and not the model's."""
    return [
        (cache.kind, cache.conv_elements, cache.state_elements, cache.conv_kernel)
        if isinstance(cache, LinearState)
        else cache
        for cache in caches
    ]


def saved_bytes(spec: ModelSpec) -> int:
    """The bytes of a model saved in one type: without predictors, which transformers does not build, and with the
    states that engines load in FP32 in the type of the rest.
    """
    layers = tuple(
        replace(layer, tensors=tuple(replace(tensor, dtype=None) for tensor in layer.tensors)) for layer in spec.layers
    )
    return checkpoint_bytes(replace(spec, layers=layers), with_mtp=False)


def test_headers_and_config_give_the_same_weight_bytes(saved: Path) -> None:
    headers, config = resolve_model(str(saved)), by_config(saved)
    assert headers.weights_source == "headers"
    assert saved_bytes(config) == saved_bytes(headers) == headers.stored_bytes
    assert headers.parameters == config.parameters
    assert headers.notes == config.notes
    assert headers.layers == config.layers


def test_a_second_way_through_transformers_gives_the_same_model(saved: Path) -> None:
    modules, config = resolve_model(str(saved), introspect="torch"), by_config(saved)
    assert modules.parameters == config.parameters
    assert [same_but_types(layer.caches) for layer in modules.layers] == [
        same_but_types(layer.caches) for layer in config.layers
    ]
    assert modules.hidden_size == config.hidden_size
    assert any("modules that transformers builds" in note for note in modules.notes)


def test_transformers_reads_a_config_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**COMMON, "model_type": "llama", "torch_dtype": "float16"}))
    spec = resolve_model(str(path), introspect="torch")
    assert spec.dtype.value == "float16"
    assert len({id(layer) for layer in spec.layers}) == 1


def test_a_family_that_transformers_does_not_know_wants_its_code_trusted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "homemade"}))
    with pytest.raises(UnsupportedModel, match="does not know the family `homemade`") as caught:
        resolve_model(str(tmp_path), introspect="torch")
    assert "--trust-remote-code" in str(caught.value.hint)


def test_a_config_that_transformers_refuses_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**COMMON, "model_type": "llama", "hidden_size": "wide"}))
    with pytest.raises(UnsupportedModel, match="transformers cannot"):
        resolve_model(str(tmp_path), introspect="torch")


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtra) as caught:
        resolve_model(str(tmp_path), introspect="torch")
    assert "memplan[profile]" in str(caught.value.hint)
