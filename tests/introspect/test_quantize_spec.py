"""What `--quant` makes of a model with plain weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quant_models import dense, fused, mixture, quantized_names, storages, wrapped

from memplan.budget.storage import checkpoint_bytes
from memplan.catalog.quant_schemes import parse_scheme, scheme_names
from memplan.domain.dtypes import DType
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UsageError
from memplan.introspect.quantized import apply_quantization, quantize_spec

SCHEMES = [name for name in scheme_names() if name != "none"]


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_makes_a_model_smaller_and_keeps_its_parameters(name: str) -> None:
    spec = mixture()
    done = quantize_spec(spec, parse_scheme(name))
    assert checkpoint_bytes(done) < 0.8 * checkpoint_bytes(spec)
    assert done.parameters == spec.parameters
    assert done.quantization == name


@pytest.mark.parametrize("name", [name for name in SCHEMES if not name.startswith("mlx")])
def test_router_norms_embedding_and_head_stay_in_the_models_type(name: str) -> None:
    spec = quantize_spec(mixture(), parse_scheme(name))
    kept = [tensor for layer in spec.layers for tensor in layer.tensors if tensor.role in (Role.ROUTER, Role.NORM)]
    assert kept
    assert not any(tensor.storage or tensor.dtype for tensor in (*kept, *spec.shared))


def test_none_makes_a_quantized_checkpoint_plain() -> None:
    spec = dense()
    quantized = apply_quantization(spec, {"quant_method": "awq", "bits": 4, "group_size": 128})
    assert quantize_spec(quantized, parse_scheme("none")) == spec


def test_another_scheme_replaces_the_checkpoints_own() -> None:
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    spec = replace(apply_quantization(mixture(), blocks), kv_cache_scheme="fp8")
    done = quantize_spec(spec, parse_scheme("gptq-int4-g128"))
    assert set(storages(done, 1).values()) == {None, "gptq-int4-g128"}
    assert done.kv_cache_scheme is None
    assert done == quantize_spec(mixture(), parse_scheme("gptq-int4-g128"))


def test_towers_are_quantized_by_bitsandbytes_only() -> None:
    assert quantize_spec(wrapped(), parse_scheme("bnb-nf4")).towers[0].tensors[0].storage is not None
    for name in ("awq", "gptq", "fp8", "nvfp4"):
        assert quantize_spec(wrapped(), parse_scheme(name)).towers[0].tensors[0].storage is None
        assert quantize_spec(wrapped(), parse_scheme(name), towers=True).towers[0].tensors[0].storage is not None
    assert quantize_spec(wrapped(), parse_scheme("bnb-nf4"), towers=False).towers[0].tensors[0].storage is None


def test_a_matrix_that_does_not_divide_stays_plain_and_is_named() -> None:
    layer = dense(1).layers[0]
    odd = Tensor(name="mlp.odd_proj.weight", shape=(250, 200), role=Role.MLP, linear=True)
    spec = replace(dense(1), layers=(replace(layer, tensors=(*layer.tensors, odd)),))
    done = quantize_spec(spec, parse_scheme("awq-int4-g128"))
    assert storages(done)["mlp.odd_proj"] is None
    assert any("odd_proj (250 x 200)" in note and "multiples of 128" in note for note in done.notes)
    assert storages(quantize_spec(spec, parse_scheme("fp8-block")))["mlp.odd_proj"] == "fp8-block"


def test_a_model_of_which_nothing_divides_is_refused() -> None:
    layer = replace(dense(1).layers[0], tensors=(Tensor(name="w", shape=(30, 30), role=Role.MLP, linear=True),))
    with pytest.raises(UsageError, match="no Linear layer of toy-dense") as caught:
        quantize_spec(replace(dense(1), layers=(layer,)), parse_scheme("awq"))
    assert "multiples of 128" in (caught.value.hint or "")


def test_a_gguf_mix_goes_by_llama_cpps_names_and_types() -> None:
    done = quantize_spec(dense(), parse_scheme("gguf:q4_k_m"))
    types = {tensor.name: tensor.storage.scheme for tensor in done.layers[-1].tensors if tensor.storage}
    assert types["ffn_up.weight"] == "gguf:q4_k"
    assert types["ffn_down.weight"] == "gguf:q6_k"


def test_the_indexers_head_weights_stay_plain_where_its_projections_do_not() -> None:
    layer = dense(1).layers[0]
    indexer = [
        Tensor(name=f"self_attn.indexer.{name}.weight", shape=(256, 256), role=Role.INDEXER, linear=True)
        for name in ("wq_b", "weights_proj")
    ]
    spec = replace(dense(1), layers=(replace(layer, tensors=(*layer.tensors, *indexer)),))
    done = storages(quantize_spec(spec, parse_scheme("fp8-block")))
    assert (done["self_attn.indexer.wq_b"], done["self_attn.indexer.weights_proj"]) == ("fp8-block", None)
    assert storages(quantize_spec(spec, parse_scheme("awq")))["self_attn.indexer.wq_b"] is None


def test_a_quantized_tensor_carries_the_type_of_its_elements() -> None:
    assert quantize_spec(dense(), parse_scheme("fp8")).layers[0].tensors[0].dtype is DType.FP8_E4M3
    assert quantize_spec(dense(), parse_scheme("awq")).layers[0].tensors[0].dtype is DType.INT4
    assert quantize_spec(dense(), parse_scheme("nvfp4")).layers[0].tensors[0].dtype is DType.FP4


def test_equal_layers_stay_one_object() -> None:
    assert len({id(layer) for layer in quantize_spec(mixture(60), parse_scheme("awq")).layers}) == 2


def test_fused_experts_are_quantized_as_a_stack() -> None:
    done = quantize_spec(fused(), parse_scheme("mxfp4"))
    assert {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"} <= quantized_names(done)


@given(st.sampled_from(SCHEMES), st.integers(1, 6))
def test_more_layers_never_take_less(name: str, num_layers: int) -> None:
    scheme = parse_scheme(name)
    few = checkpoint_bytes(quantize_spec(dense(num_layers), scheme))
    assert few < checkpoint_bytes(quantize_spec(dense(num_layers + 1), scheme))
