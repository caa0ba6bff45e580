"""What each kind of quantization config makes of a model, by the rules of the tool that writes it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from quant_models import dense, fused, mixture, quantized_names, storages, wrapped

from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role, Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect.quantized import apply_quantization, find_quantization

ATTENTION = {f"self_attn.{name}_proj" for name in "qkvo"}
DENSE = ATTENTION | {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
EXPERTS = {f"mlp.experts.*.{name}_proj" for name in ("gate", "up", "down")}
SHARED = {f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
CT_INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def compressed(ignore: list[str], *, targets: tuple[str, ...] = ("Linear",), **weights: object) -> dict[str, object]:
    group = {"targets": list(targets), "weights": {**CT_INT4, **weights}, "input_activations": None}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ignore}


# --- FP8 -------------------------------------------------------------------------------------------------------------


def test_fp8_blocks_take_every_linear_layer_but_head_and_router() -> None:
    spec = apply_quantization(mixture(), BLOCKS)
    assert quantized_names(spec, 0) == DENSE
    assert quantized_names(spec, 1) == ATTENTION | EXPERTS | SHARED
    assert not any(tensor.storage for tensor in spec.shared)
    assert spec.quantization == "fp8-block"
    assert spec.layers[1].tensors[0].dtype is DType.FP8_E4M3


def test_fp8_keeps_listed_modules_and_what_is_below_them() -> None:
    spec = apply_quantization(mixture(), {**BLOCKS, "modules_to_not_convert": ["model.layers.2.mlp", "o_proj"]})
    assert quantized_names(spec, 1) == (ATTENTION | EXPERTS | SHARED) - {"self_attn.o_proj"}
    assert quantized_names(spec, 2) == ATTENTION - {"self_attn.o_proj"}


def test_a_listed_layer_one_does_not_mean_layer_eleven() -> None:
    spec = apply_quantization(dense(12), {**BLOCKS, "modules_to_not_convert": ["model.layers.1"]})
    assert quantized_names(spec, 1) == set()
    assert quantized_names(spec, 11) == DENSE


def test_fp8_without_blocks_has_one_scale_and_a_static_one_for_the_input() -> None:
    spec = apply_quantization(dense(), {**BLOCKS, "weight_block_size": None, "activation_scheme": "static"})
    storage = spec.layers[0].tensors[0].storage
    assert storage is not None
    assert (storage.scheme, storage.group_out, storage.tensor_bytes) == ("fp8", 0, 4)


def test_the_experts_of_deepseek_v4_are_fp4_where_its_config_says_so() -> None:
    config = {"model_type": "deepseek_v4", "expert_dtype": "fp4"}
    spec = apply_quantization(mixture(), BLOCKS, config=config)
    assert storages(spec, 1)["mlp.experts.*.up_proj"] == "mxfp4"
    assert storages(spec, 1)["self_attn.q_proj"] == "fp8-block"
    plain = apply_quantization(mixture(), BLOCKS, config={**config, "expert_dtype": "fp8"})
    assert storages(plain, 1)["mlp.experts.*.up_proj"] == "fp8-block"


def test_fp4_on_top_of_fp8_lists_the_experts_it_made() -> None:
    layers = {f"layers.{index}.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16} for index in (1, 2)}
    config = {**BLOCKS, "quant_algo": "MIXED_PRECISION", "moe_quant_algo": "NVFP4", "quantized_layers": layers}
    spec = apply_quantization(mixture(), config, config={"model_type": "deepseek_v4"})
    assert storages(spec, 2)["mlp.experts.*.up_proj"] == "nvfp4"
    assert storages(spec, 3)["mlp.experts.*.up_proj"] == "mxfp4"
    assert storages(spec, 2)["self_attn.q_proj"] == "fp8-block"


def test_fbgemm_has_a_wide_scale_for_every_channel() -> None:
    spec = apply_quantization(dense(), {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["model.layers.0.mlp"]})
    assert quantized_names(spec, 0) == ATTENTION
    storage = spec.layers[1].tensors[0].storage
    assert storage is not None
    assert (storage.scheme, storage.scale_bits) == ("fp8-channel", 32)


def test_fbgemm_that_lists_one_layers_attention_keeps_it_in_all() -> None:
    listed = ["model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"]
    spec = apply_quantization(dense(), {"quant_method": "fbgemm_fp8", "modules_to_not_convert": listed})
    assert quantized_names(spec, 0) == {"mlp.gate_proj", "mlp.down_proj"}
    assert quantized_names(spec, 3) == DENSE - ATTENTION


def test_mxfp4_of_gpt_oss_takes_experts_only() -> None:
    keep = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    spec = apply_quantization(mixture(), {"quant_method": "mxfp4", "modules_to_not_convert": keep})
    assert quantized_names(spec, 1) == EXPERTS
    assert spec.quantization == "mxfp4"


# --- GPTQ, AWQ, AutoRound --------------------------------------------------------------------------------------------


def test_gptq_takes_the_decoders_linear_layers_and_leaves_towers_alone() -> None:
    spec = apply_quantization(wrapped(), {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True})
    assert quantized_names(spec) == DENSE
    assert not any(tensor.storage for tower in spec.towers for tensor in tower.tensors)
    assert spec.quantization == "gptq-int4-g128"


def test_gptq_dynamic_rules_leave_modules_out_and_change_others() -> None:
    dynamic = {r"-:.*layers\.0\.mlp.*": {}, r"+:.*down_proj": {"bits": 8, "group_size": 32}, "lm_head": {"bits": 8}}
    spec = apply_quantization(dense(), {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": dynamic})
    assert quantized_names(spec, 0) == ATTENTION
    assert storages(spec, 1)["mlp.down_proj"] == "gptq-int8-g32"
    assert storages(spec, 1)["mlp.up_proj"] == "gptq-int4-g128"
    assert spec.shared[-1].storage is not None


def test_gptq_quantizes_only_the_modules_listed_in_a_block() -> None:
    modules = [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.down_proj"]]
    spec = apply_quantization(
        dense(), {"quant_method": "gptq", "bits": 4, "group_size": -1, "modules_in_block_to_quantize": modules}
    )
    assert quantized_names(spec) == {"self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"}
    assert spec.quantization == "gptq-int4-channel"


def test_gptq_quantizes_the_head_when_told() -> None:
    spec = apply_quantization(dense(), {"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True})
    assert spec.shared[-1].storage is not None


def test_awq_skips_by_part_of_a_name_but_a_gate_is_the_router() -> None:
    config = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    spec = apply_quantization(mixture(), {**config, "modules_to_not_convert": ["gate", "shared_exp", "v_pro"]})
    assert quantized_names(spec, 1) == (ATTENTION | EXPERTS) - {"self_attn.v_proj"}
    assert spec.quantization == "awq-int4-g128"


def test_awq_is_read_under_its_first_keys_too() -> None:
    spec = apply_quantization(dense(), {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": False})
    storage = spec.layers[0].tensors[0].storage
    assert storage is not None
    assert (storage.scheme, storage.zero_bits) == ("awq-int4-g64", 0)


def test_auto_round_settings_by_name_end_of_name_and_expression() -> None:
    extra = {
        "lm_head": {"bits": 8, "group_size": 64},
        "model.layers.1.self_attn.q_proj": {"bits": 16},
        r".*mlp\.down_proj": {"bits": 8},
    }
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_gptq"}
    spec = apply_quantization(dense(), {**config, "extra_config": extra})
    assert storages(spec, 1)["self_attn.q_proj"] is None
    assert storages(spec, 0)["self_attn.q_proj"] == "autoround-int4-g128"
    assert storages(spec, 0)["mlp.down_proj"] == "autoround-int8-g128"
    head = spec.shared[-1].storage
    assert head is not None
    assert head.scheme == "autoround-int8-g64"


def test_auto_round_quantizes_the_named_blocks_only() -> None:
    config = {"quant_method": "intel/auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_awq"}
    spec = apply_quantization(wrapped(), {**config, "block_name_to_quantize": "model.language_model.layers"})
    assert quantized_names(spec) == DENSE
    assert spec.quantization == "awq-int4-g128"


# --- compressed-tensors and Quark ------------------------------------------------------------------------------------


def test_compressed_tensors_ignores_by_name_and_by_expression() -> None:
    ignore = ["lm_head", "re:.*self_attn.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*", "re:.*shared_experts.*"]
    spec = apply_quantization(mixture(), compressed(ignore))
    assert quantized_names(spec, 0) == set()
    assert quantized_names(spec, 1) == EXPERTS
    assert spec.quantization == "ct-int4-g32"


def test_a_target_of_class_linear_takes_the_head_unless_it_is_ignored() -> None:
    assert apply_quantization(dense(), compressed([])).shared[-1].storage is not None
    assert apply_quantization(dense(), compressed(["lm_head"])).shared[-1].storage is None


def test_ignored_names_of_a_wrapper_meet_whatever_prefix_they_carry() -> None:
    for prefix in ("language_model.model.", "model.language_model.", "model.", ""):
        spec = apply_quantization(wrapped(), compressed([f"{prefix}layers.2.mlp.up_proj", "re:.*visual.*"]))
        assert quantized_names(spec, 2) == DENSE - {"mlp.up_proj"}
        assert quantized_names(spec, 1) == DENSE


def test_llama_4_without_its_ignore_list_has_quantized_experts_only() -> None:
    config = compressed([], num_bits=8, type="float", strategy="channel", group_size=None)
    del config["ignore"]
    assert quantized_names(apply_quantization(mixture(), config, config={"model_type": "llama4"}), 1) == EXPERTS
    assert quantized_names(apply_quantization(mixture(), config), 1) == ATTENTION | EXPERTS | SHARED


def test_groups_of_compressed_tensors_each_have_their_targets() -> None:
    config = compressed(["lm_head"])
    eight = {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    config["config_groups"] = {"group_1": eight, **config["config_groups"]}  # type: ignore[dict-item]
    spec = apply_quantization(dense(), config)
    assert storages(spec)["mlp.down_proj"] == "fp8-channel"
    assert storages(spec)["mlp.up_proj"] == "ct-int4-g32"


@pytest.mark.parametrize(
    ("weights", "layout", "scheme"),
    [
        ({"num_bits": 8, "type": "int", "strategy": "channel", "group_size": None}, "int-quantized", "w8a8-int8"),
        ({"num_bits": 8, "type": "int", "strategy": "channel", "group_size": None}, "pack-quantized", "w8a16-int8"),
        ({"num_bits": 4, "type": "int", "group_size": 128, "symmetric": False}, "pack-quantized", "ct-int4-g128"),
        ({"num_bits": 8, "type": "float", "strategy": "tensor", "group_size": None}, "float-quantized", "fp8"),
        ({"num_bits": 8, "type": "float", "strategy": "channel", "group_size": None}, "float-quantized", "fp8-channel"),
        (
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128], "group_size": None},
            "float-quantized",
            "fp8-block",
        ),
        (
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            "nvfp4-pack-quantized",
            "nvfp4",
        ),
        ({"num_bits": 4, "type": "float", "group_size": 32}, "mxfp4-pack-quantized", "mxfp4"),
        ({"num_bits": 8, "type": "float", "group_size": 32}, "mxfp8-quantized", "mxfp8"),
    ],
)
def test_every_format_of_compressed_tensors_is_known(weights: dict[str, object], layout: str, scheme: str) -> None:
    spec = apply_quantization(dense(), {**compressed(["lm_head"], **weights), "format": layout})
    assert spec.quantization == scheme


def test_a_fused_projection_is_ignored_under_the_names_of_its_parts() -> None:
    spec = apply_quantization(fused(), compressed([f"model.layers.0.self_attn.{each}_proj" for each in "qkv"]))
    assert storages(spec, 0)["self_attn.qkv_proj"] is None
    assert storages(spec, 1)["self_attn.qkv_proj"] == "ct-int4-g32"


def test_parts_are_ignored_under_the_name_of_the_fused_projection() -> None:
    spec = apply_quantization(dense(), {**BLOCKS, "modules_to_not_convert": ["model.layers.0.self_attn.qkv_proj"]})
    assert quantized_names(spec, 0) == DENSE - {f"self_attn.{each}_proj" for each in "qkv"}


def test_quark_has_settings_by_layer_and_a_list_of_exclusions() -> None:
    fp4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32}
    config = {
        "quant_method": "quark",
        "global_quant_config": {"weight": fp4},
        "layer_quant_config": {"*down_proj": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}}},
        "exclude": ["lm_head", "re:.*layers.1.mlp.*", "*.o_proj"],
        "export": {"kv_cache_group": ["*k_proj"]},
    }
    spec = apply_quantization(dense(), config)
    assert storages(spec, 0)["mlp.down_proj"] == "fp8"
    assert storages(spec, 0)["mlp.up_proj"] == "mxfp4"
    assert quantized_names(spec, 1) == ATTENTION - {"self_attn.o_proj"}
    assert spec.kv_cache_scheme == "fp8"


# --- ModelOpt --------------------------------------------------------------------------------------------------------


def test_modelopt_excludes_by_shell_pattern_and_names_its_cache() -> None:
    excluded = ["lm_head", "model.layers.1.self_attn*", "*.mlp.shared_experts.*", "model.layers.2.mlp.gate"]
    quantization = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": excluded}
    spec = apply_quantization(mixture(), None, hf_quant_config={"quantization": quantization})
    assert quantized_names(spec, 1) == EXPERTS
    assert quantized_names(spec, 2) == ATTENTION | EXPERTS
    assert (spec.quantization, spec.kv_cache_scheme) == ("nvfp4", "fp8")


def test_modelopt_in_config_json_has_other_keys() -> None:
    config = {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "ignore": ["lm_head"],
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }
    spec = apply_quantization(dense(), config, hf_quant_config={"quantization": {"quant_algo": "NVFP4"}})
    assert (spec.quantization, spec.kv_cache_scheme) == ("fp8", "fp8")


def test_mixed_precision_names_an_algorithm_for_every_module() -> None:
    layers = {f"model.layers.{index}.self_attn.q_proj": {"quant_algo": "FP8"} for index in range(4)}
    layers |= {f"model.layers.{index}.mlp.experts": {"quant_algo": "W4A16_NVFP4", "group_size": 16} for index in (1, 2)}
    layers |= {"lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16}}
    config = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers, "exclude_modules": ["mtp*"]}
    spec = apply_quantization(mixture(), None, hf_quant_config={"quantization": config})
    assert quantized_names(spec, 0) == {"self_attn.q_proj"}
    assert quantized_names(spec, 1) == {"self_attn.q_proj"} | EXPERTS
    assert quantized_names(spec, 3) == {"self_attn.q_proj"}
    assert spec.shared[-1].storage is not None
    assert spec.quantization == "nvfp4"


def test_mixed_precision_may_name_experts_one_by_one() -> None:
    layers = {
        f"model.layers.1.mlp.experts.{expert}.{name}": {"quant_algo": "NVFP4"}
        for expert in range(8)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    config = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    assert quantized_names(apply_quantization(mixture(), config), 1) == EXPERTS
    gpt = {name.replace("layers.1", "layers.0"): value for name, value in layers.items()}
    spec = apply_quantization(fused(), {**config, "quantized_layers": gpt})
    assert quantized_names(spec, 0) == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}


def test_a_config_without_exclusions_says_so() -> None:
    spec = apply_quantization(mixture(), None, hf_quant_config={"quantization": {"quant_algo": "FP8"}})
    assert quantized_names(spec, 1) == ATTENTION | EXPERTS | SHARED
    assert not any(tensor.storage for tensor in spec.shared)
    assert any("no excluded modules" in note for note in spec.notes)
    nemotron = apply_quantization(
        mixture(), None, hf_quant_config={"quant_algo": "FP8"}, config={"model_type": "nemotron_h"}
    )
    assert quantized_names(nemotron, 1) == EXPERTS  # recorded start-ups hold its shared experts in 16 bits


# --- libraries that replace Linear layers ----------------------------------------------------------------------------


def test_bitsandbytes_takes_towers_and_skips_named_components() -> None:
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    spec = apply_quantization(wrapped(), {**config, "bnb_4bit_use_double_quant": True})
    assert spec.quantization == "bnb-nf4-dq"
    assert spec.towers[0].tensors[0].storage is not None
    assert spec.towers[0].tensors[1].storage is None
    skipped = apply_quantization(wrapped(), {**config, "llm_int8_skip_modules": ["visual", "mlp"]})
    assert quantized_names(skipped) == ATTENTION
    assert skipped.towers[0].tensors[0].storage is None
    assert apply_quantization(dense(), {"load_in_8bit": True}).quantization == "bnb-int8"


def test_mlx_takes_embeddings_and_head_and_has_overrides_by_name() -> None:
    override = {"model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 8}, "model.layers.1.self_attn.q_proj": False}
    spec = apply_quantization(dense(), {"group_size": 64, "bits": 4, **override})
    assert all(tensor.storage for tensor in spec.shared if len(tensor.shape) == 2)
    assert storages(spec, 0)["mlp.down_proj"] == "mlx-int8-g32"
    assert storages(spec, 1)["self_attn.q_proj"] is None
    assert spec.quantization == "mlx-int4-g64"


def test_mlx_leaves_rows_that_are_no_whole_groups() -> None:
    layer = dense(1).layers[0]
    odd = Tensor(name="mlp.odd.weight", shape=(64, 96), role=Role.MLP, linear=True)
    spec = replace(dense(1), layers=(replace(layer, tensors=(*layer.tensors, odd)),))
    assert "mlp.odd" not in quantized_names(apply_quantization(spec, {"group_size": 64, "bits": 4}))


@pytest.mark.parametrize(
    ("config", "scheme"),
    [
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, "torchao-int4-g128"),
        (
            {
                "quant_method": "torchao",
                "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 32}}},
            },
            "torchao-int4-g32",
        ),
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
            "torchao-int8",
        ),
        (
            {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3, "group_size": 64}}},
            "hqq-int3-g64",
        ),
        ({"quant_method": "quanto", "weights": "float8"}, "fp8-channel"),
        ({"quant_method": "eetq", "weights": "int8"}, "w8a16-int8"),
        ({"quant_method": "aqlm", "num_codebooks": 1, "nbits_per_codebook": 16}, "aqlm"),
        ({"quant_method": "bitnet"}, "bitnet"),
        ({"quant_method": "higgs", "bits": 4}, "higgs"),
        ({"quant_method": "fp_quant", "forward_dtype": "mxfp4"}, "mxfp4"),
        ({"quant_method": "mxfp8"}, "mxfp8"),
        ({"quant_method": "metal", "bits": 4, "group_size": 64}, "mlx-int4-g64"),
    ],
)
def test_other_libraries_are_recognised(config: dict[str, object], scheme: str) -> None:
    spec = apply_quantization(dense(), config)
    assert spec.quantization == scheme
    assert quantized_names(spec) == DENSE


# --- the whole model -------------------------------------------------------------------------------------------------


def test_a_plain_checkpoint_stays_as_it_is() -> None:
    spec = dense()
    assert apply_quantization(spec, None) is spec
    assert find_quantization({"model_type": "llama"}) is None


def test_a_quantization_of_the_language_model_leaves_the_tower_alone() -> None:
    config = {"text_config": {"quantization_config": compressed([])}}
    found = find_quantization(config)
    assert found is not None
    spec = apply_quantization(wrapped(), found, config=config)
    assert quantized_names(spec) == DENSE
    assert spec.towers[0].tensors[0].storage is None
    whole = apply_quantization(wrapped(), compressed([]), config={"quantization_config": compressed([])})
    assert whole.towers[0].tensors[0].storage is not None


def test_prediction_layers_are_quantized_with_the_model_and_not_by_tools_that_skip_them() -> None:
    def part(name: str, *, linear: bool = True) -> Tensor:
        return Tensor(name=f"model.layers.4.{name}.weight", shape=(256, 256), role=Role.MTP, linear=linear)

    mtp = tuple(part(name) for name in ("eh_proj", "mlp.gate", "mlp.experts.*.up_proj", "self_attn.o_proj"))
    spec = replace(mixture(), mtp=(*mtp, part("embed_tokens", linear=False)))
    native = apply_quantization(spec, BLOCKS)
    assert [bool(tensor.storage) for tensor in native.mtp] == [False, False, True, True, False]
    tool = apply_quantization(spec, {"quant_method": "awq", "bits": 4, "group_size": 128})
    assert not any(tensor.storage for tensor in tool.mtp)


def test_a_quantized_checkpoint_whose_config_names_no_type_is_not_taken_for_32_bit() -> None:
    spec = replace(dense(), dtype=DType.F32)
    assert apply_quantization(spec, BLOCKS, config={"model_type": "toy"}).dtype is DType.BF16
    assert apply_quantization(spec, BLOCKS, config={"torch_dtype": "float32"}).dtype is DType.F32


def test_equal_layers_stay_one_object() -> None:
    spec = apply_quantization(mixture(60), BLOCKS)
    assert len({id(layer) for layer in spec.layers}) == 2
    listed = {**BLOCKS, "modules_to_not_convert": [f"model.layers.{index}.mlp.gate" for index in range(60)]}
    assert len({id(layer) for layer in apply_quantization(mixture(60), listed).layers}) == 2


def test_parameters_do_not_change() -> None:
    spec = mixture()
    assert apply_quantization(spec, BLOCKS).parameters == spec.parameters


def test_the_checkpoint_bytes_are_those_of_its_tensors() -> None:
    from memplan.budget.storage import checkpoint_bytes

    spec = dense(2)
    linear = sum(tensor.num_elements for tensor in spec.layers[0].tensors if tensor.linear)
    plain = 2 * (spec.parameters - 2 * linear)
    blocks_ = sum(
        -(-tensor.shape[0] // 128) * -(-tensor.shape[1] // 128) for tensor in spec.layers[0].tensors if tensor.linear
    )
    assert checkpoint_bytes(spec) == 2 * spec.parameters
    assert checkpoint_bytes(apply_quantization(spec, BLOCKS)) == plain + 2 * linear + 4 * 2 * blocks_


def test_hundreds_of_patterns_on_sixty_layers_take_milliseconds() -> None:
    spec = mixture(61, 256)
    excluded = [f"model.layers.{index}.self_attn.{name}*" for index in range(61) for name in ("q_a", "kv_b", "o_proj")]
    excluded += [f"model.layers.{index}.mlp.gate" for index in range(61)]
    config = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": excluded}}
    fastest = min(_seconds(spec, config) for _ in range(5))
    assert fastest < 0.05  # a few milliseconds on an idle machine


def _seconds(spec: ModelSpec, config: dict[str, object]) -> float:
    start = time.perf_counter()
    apply_quantization(spec, None, hf_quant_config=config)
    return time.perf_counter() - start


def test_a_config_that_names_nothing_of_the_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="names no module"):
        apply_quantization(dense(), {**BLOCKS, "modules_to_not_convert": ["model"]})
