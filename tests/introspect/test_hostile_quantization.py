"""Quantization configs that lie, are damaged or want to stall: only memplan's own errors come out, and soon."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_models import mixture

from memplan.errors import MemplanError
from memplan.introspect.quantization import READERS
from memplan.introspect.quantized import apply_quantization, find_quantization

SPEC = mixture(3)
KEYS = [
    *("bits", "group_size", "w_bit", "quant_algo", "exclude_modules", "ignore", "modules_to_not_convert", "dynamic"),
    *("weight_block_size", "activation_scheme", "config_groups", "format", "quantized_layers", "kv_cache_scheme"),
    *("quantization", "extra_config", "block_name_to_quantize", "data_type", "packing_format", "sym", "zero_point"),
    *("modules_in_block_to_quantize", "global_quant_config", "layer_quant_config", "exclude", "export", "quant_type"),
    *("quant_config", "nbits", "weights", "mode", "load_in_8bit", "bnb_4bit_quant_type", "llm_int8_skip_modules"),
    *("in_group_size", "num_codebooks", "nbits_per_codebook", "forward_dtype", "quantization_mode", "lm_head"),
    *(
        "group_0",
        "targets",
        "num_bits",
        "type",
        "strategy",
        "symmetric",
        "weight",
        "dtype",
        "qscheme",
        "default",
        "_type",
    ),
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["re:.*", "re:(", "*", "-:.*", "model.layers.*", "Linear", "int", "float", "FP8", "NVFP4", "fp4"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=400)
@given(st.sampled_from([*READERS, "", "nonsense"]), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8))
def test_only_our_own_errors_come_out(method: str, config: dict[str, object]) -> None:
    with contextlib.suppress(MemplanError):
        apply_quantization(SPEC, {"quant_method": method, **config}, config={"model_type": "toy"})


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(["quantization", *KEYS]), VALUES, max_size=6))
def test_modelopts_file_may_be_damaged_too(config: dict[str, object]) -> None:
    with contextlib.suppress(MemplanError):
        apply_quantization(SPEC, None, hf_quant_config=config)


@given(VALUES)
def test_a_quantization_that_is_no_mapping_is_not_found(value: object) -> None:
    found = find_quantization({"quantization_config": value, "text_config": value})
    assert found is None or isinstance(found, dict)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"quant_method": "gtpq", "bits": 4}, "unknown quantization method: `gtpq`"),
        ({"quant_method": "gptq"}, "`quantization_config.bits`"),
        ({"quant_method": "gptq", "bits": 16, "group_size": 128}, "must be 1 to 8, not 16"),
        ({"quant_method": "gptq", "bits": "4", "group_size": 128}, "must be a whole number"),
        ({"quant_method": "awq", "bits": 4, "group_size": -7}, "at least -1"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "must be two sizes"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "must be two sizes"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "must be a list"),
        ({"quant_method": "fp8", "modules_to_not_convert": [None]}, "no module name"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP5"}, "unknown quantization algorithm"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "vptq"}, "cannot be told from the config"),
        ({"quant_method": "bitnet", "quantization_mode": "online"}, "stored plain"),
        ({"bits": 4, "group_size": 64, "mode": "fancy"}, "unknown quantization mode of MLX"),
    ],
)
def test_the_error_names_what_was_wrong(config: dict[str, object], says: str) -> None:
    with pytest.raises(MemplanError) as caught:
        apply_quantization(SPEC, config)
    assert says in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("pattern", ["re:(", "re:(a+)+$", "re:(.*)*x", "re:" + ".*a" * 12, "re:" + "a" * 600])
def test_a_pattern_that_could_stall_or_is_none_is_refused(pattern: str) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": [pattern]}
    start = time.perf_counter()
    with pytest.raises(MemplanError):
        apply_quantization(SPEC, config)
    assert time.perf_counter() - start < 2


def test_a_hundred_thousand_names_are_read_in_moderate_time() -> None:
    config = {"quant_method": "fp8", "modules_to_not_convert": [f"model.layers.{n}.x" for n in range(100_000)]}
    start = time.perf_counter()
    apply_quantization(SPEC, config)
    assert time.perf_counter() - start < 5
