"""Whatever a decoder's config holds, it is read or refused with our own error, and soon."""

import copy
import time

import pytest
from decoder_cases import FACTS, Raw, fact_label, read_fact
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.budget.kv_cache import growing_token_bytes, kv_format, model_token_bytes
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.errors import MemplanError
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.families.decoders import DECODERS

F16 = kv_format("float16", DType.F16)
CONFIGS: list[Raw] = [fact["config"] for fact in FACTS]  # type: ignore[misc]
NUMBERS = [-1, 0, 1, 2, 3, 7, 64, 4096, 10**9, 10**30, -3.5, 1.5, float("nan"), float("inf")]
TEXTS = ["", "x", "auto", "9" * 50, "LLLG", "M*-E", "1,2,3", "full_attention"]
LISTS: list[object] = [[], [0], [1], [-1, None], ["x"], [[1]], [[["global", "local"], 12]], ["full_attention"]]
JUNK = st.sampled_from([None, True, False, *NUMBERS, *TEXTS, *LISTS, {}, {"a": 1}, {"0": "x"}])
SIZES = ("hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads")
PATIENT = settings(max_examples=500)
SMALL = st.fixed_dictionaries(
    {
        "model_type": st.sampled_from(sorted(DECODERS)),
        "vocab_size": st.integers(1, 1000),
        "hidden_size": st.integers(1, 64).map(lambda heads: 16 * heads),
        "num_hidden_layers": st.integers(1, 12),
        "num_attention_heads": st.sampled_from([1, 2, 4, 8, 16]),
        "max_position_embeddings": st.integers(1, 4096),
    },
    optional={
        "num_key_value_heads": st.sampled_from([1, 2, 4, 8, 16]),
        "intermediate_size": st.integers(1, 512),
        "moe_intermediate_size": st.integers(1, 512),
        "num_experts": st.integers(1, 16),
        "n_routed_experts": st.integers(1, 16),
        "num_local_experts": st.integers(1, 16),
        "num_experts_per_tok": st.integers(1, 4),
        "head_dim": st.sampled_from([8, 16, 32]),
        "sliding_window": st.none() | st.integers(1, 4096),
        "tie_word_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
        "kv_lora_rank": st.integers(1, 128),
        "q_lora_rank": st.none() | st.integers(1, 128),
        "qk_nope_head_dim": st.integers(1, 64),
        "qk_rope_head_dim": st.integers(1, 64),
        "v_head_dim": st.integers(1, 64),
    },
)


def measure(raw: Raw) -> ModelSpec | MemplanError:
    """What the config describes, its totals taken, or why it was refused; any other error fails the test."""
    try:
        spec = build_spec(Config(copy.deepcopy(raw)), "random")
    except MemplanError as refusal:
        return refusal
    assert spec.parameters > 0
    assert 0 < spec.active_parameters <= spec.parameters
    assert model_token_bytes(spec, F16) >= growing_token_bytes(spec, F16) >= 0
    return spec


def damaged(draw: st.DrawFn, config: Raw) -> Raw:
    """A config with one value taken away or replaced, at any depth."""
    key = draw(st.sampled_from(sorted(config)))
    value = config[key]
    if key == "model_type":
        return config
    if isinstance(value, dict) and value and draw(st.booleans()):
        return {**config, key: damaged(draw, value)}
    if isinstance(value, list) and value and draw(st.booleans()):
        kept = value[: draw(st.integers(0, len(value)))]
        return {**config, key: [*kept, draw(JUNK)] if draw(st.booleans()) else kept}
    if draw(st.booleans()):
        return {name: kept for name, kept in config.items() if name != key}
    return {**config, key: draw(JUNK)}


@PATIENT
@given(data=st.data())
def test_a_damaged_config_of_a_known_decoder_is_read_or_refused(data: st.DataObject) -> None:
    config = data.draw(st.sampled_from(CONFIGS))
    for _ in range(data.draw(st.integers(1, 4))):
        config = damaged(data.draw, config)
    measure(config)


@PATIENT
@given(config=SMALL)
def test_a_small_config_of_any_family_is_read_or_refused(config: Raw) -> None:
    measure(config)


@PATIENT
@given(config=SMALL, families=st.sampled_from(["llama", "qwen2", "qwen3", "mistral", "gemma", "olmo2", "starcoder2"]))
def test_an_ordinary_decoder_grows_by_one_layer_s_parameters_with_every_layer(config: Raw, families: str) -> None:
    config = {**config, "model_type": families}
    longer = {**config, "num_hidden_layers": config["num_hidden_layers"] + 1}  # type: ignore[operator]
    small, large = measure(config), measure(longer)
    if isinstance(small, ModelSpec):
        assert isinstance(large, ModelSpec)
        assert large.parameters - small.parameters == small.layers[0].num_parameters
        assert len(large.layers) == len(small.layers) + 1


@pytest.mark.parametrize("fact", FACTS, ids=fact_label)
@pytest.mark.parametrize("value", ["x", -7, 1.5, [], {}], ids=str)
def test_a_size_that_is_no_size_is_refused(fact: Raw, value: object) -> None:
    config = fact["config"]
    assert isinstance(config, dict)
    for key in SIZES:
        if key in config:
            with pytest.raises(MemplanError):
                build_spec(Config({**config, key: value}), "damaged")


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3", "gemma2"])
def test_a_null_size_that_has_no_default_is_refused_by_its_name(family: str, key: str) -> None:
    config = next(config for config in CONFIGS if config["model_type"] == family)
    if key in config and key != "num_attention_heads":
        with pytest.raises(MemplanError, match=key):
            build_spec(Config({**config, key: None}), "damaged")


def test_every_known_decoder_is_read_within_a_few_milliseconds() -> None:
    times = []
    for fact in FACTS:
        read_fact(fact)
        started = time.perf_counter()
        read_fact(fact)
        times.append(time.perf_counter() - started)
    assert sorted(times)[len(times) // 2] < 0.005
