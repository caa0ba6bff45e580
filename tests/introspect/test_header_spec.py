from collections.abc import Callable
from dataclasses import replace
from math import prod

import pytest

from memplan.budget.storage import checkpoint_bytes
from memplan.domain.dtypes import DType
from memplan.domain.model import ModelSpec
from memplan.domain.tensors import Role
from memplan.introspect.header_spec import merge_headers
from memplan.introspect.inventory import SAFETENSORS_BITS, Inventory, StoredTensor
from memplan.introspect.model_folder import spec_from_config

HIDDEN, INNER, VOCAB, LAYERS = 256, 512, 1024, 3
LLAMA: dict[str, object] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
Stored = dict[str, StoredTensor]
Linear = Callable[[str, int, int], Stored]


def tensor(dtype: str, *shape: int) -> StoredTensor:
    return StoredTensor(dtype, shape, prod(shape) * SAFETENSORS_BITS[dtype] // 8)


def plain(name: str, out: int, wide: int) -> Stored:
    return {f"{name}.weight": tensor("BF16", out, wide)}


def gptq(name: str, out: int, wide: int) -> Stored:
    return {
        f"{name}.qweight": tensor("I32", wide // 8, out),
        f"{name}.qzeros": tensor("I32", wide // 128, out // 8),
        f"{name}.scales": tensor("F16", wide // 128, out),
        f"{name}.g_idx": tensor("I32", wide),
    }


def awq(name: str, out: int, wide: int) -> Stored:
    return {
        f"{name}.qweight": tensor("I32", wide, out // 8),
        f"{name}.qzeros": tensor("I32", wide // 128, out // 8),
        f"{name}.scales": tensor("F16", wide // 128, out),
    }


def fp8_block(name: str, out: int, wide: int) -> Stored:
    return {
        f"{name}.weight": tensor("F8_E4M3", out, wide),
        f"{name}.weight_scale_inv": tensor("F32", -(-out // 128), -(-wide // 128)),
    }


def fp8_tensor(name: str, out: int, wide: int) -> Stored:
    scales = {f"{name}.weight_scale": tensor("F32"), f"{name}.input_scale": tensor("F32")}
    return {f"{name}.weight": tensor("F8_E4M3", out, wide), **scales}


def fp8_channel(name: str, out: int, wide: int) -> Stored:
    return {f"{name}.weight": tensor("F8_E4M3", out, wide), f"{name}.weight_scale": tensor("BF16", out, 1)}


def packed(name: str, out: int, wide: int) -> Stored:
    return {
        f"{name}.weight_packed": tensor("I32", out, wide // 8),
        f"{name}.weight_scale": tensor("BF16", out, wide // 128),
        f"{name}.weight_shape": tensor("I64", 2),
    }


def nvfp4(name: str, out: int, wide: int) -> Stored:
    return {
        f"{name}.weight": tensor("U8", out, wide // 2),
        f"{name}.weight_scale": tensor("F8_E4M3", out, wide // 16),
        f"{name}.weight_scale_2": tensor("F32"),
        f"{name}.input_scale": tensor("F32"),
    }


def mlx(name: str, out: int, wide: int) -> Stored:
    return {
        f"{name}.weight": tensor("U32", out, wide // 8),
        f"{name}.scales": tensor("BF16", out, wide // 64),
        f"{name}.biases": tensor("BF16", out, wide // 64),
    }


def stored_llama(linear: Linear, *, prefix: str = "model.", experts: int = 0) -> Stored:
    stored = {
        f"{prefix}embed_tokens.weight": tensor("BF16", VOCAB, HIDDEN),
        f"{prefix}norm.weight": tensor("BF16", HIDDEN),
        "lm_head.weight": tensor("BF16", VOCAB, HIDDEN),
    }
    for index in range(LAYERS):
        layer = f"{prefix}layers.{index}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            stored[f"{layer}.{norm}.weight"] = tensor("BF16", HIDDEN)
        for name, out in (("q_proj", HIDDEN), ("k_proj", 64), ("v_proj", 64), ("o_proj", HIDDEN)):
            stored |= linear(f"{layer}.self_attn.{name}", out, HIDDEN)
        if experts:
            stored[f"{layer}.block_sparse_moe.gate.weight"] = tensor("BF16", experts, HIDDEN)
            for number in range(experts):
                expert = f"{layer}.block_sparse_moe.experts.{number}"
                stored |= linear(f"{expert}.w1", INNER, HIDDEN) | linear(f"{expert}.w3", INNER, HIDDEN)
                stored |= linear(f"{expert}.w2", HIDDEN, INNER)
        else:
            stored |= linear(f"{layer}.mlp.gate_proj", INNER, HIDDEN) | linear(f"{layer}.mlp.up_proj", INNER, HIDDEN)
            stored |= linear(f"{layer}.mlp.down_proj", HIDDEN, INNER)
    return stored


def inventory(stored: Stored) -> Inventory:
    return Inventory(tensors=stored, files=("model.safetensors",), metadata={})


def merged(config: dict[str, object], stored: Stored) -> ModelSpec:
    spec = merge_headers(spec_from_config(config, "m"), inventory(stored))
    assert spec.stored_bytes == sum(each.size_bytes for each in stored.values())
    return spec


GROUPED = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
FORMATS: dict[str, tuple[Linear, dict[str, object]]] = {
    "gptq": (gptq, GROUPED),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}),
    "fp8 block": (fp8_block, {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}),
    "fp8 tensor": (fp8_tensor, {"quant_method": "fp8", "activation_scheme": "static"}),
    "fp8 channel": (
        fp8_channel,
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "dynamic": False},
                    "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
                }
            },
            "ignore": ["lm_head"],
        },
    ),
    "packed": (
        packed,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "strategy": "group",
                        "group_size": 128,
                        "symmetric": True,
                    },
                }
            },
            "ignore": ["lm_head"],
        },
    ),
    "nvfp4": (nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}),
    "mlx": (mlx, {}),
}


def test_headers_that_say_what_the_config_says_change_nothing_but_the_source() -> None:
    expected = spec_from_config(LLAMA, "m")
    spec = merged(LLAMA, stored_llama(plain))
    assert spec == replace(expected, weights_source="headers", stored_bytes=checkpoint_bytes(expected))
    assert len({id(layer) for layer in spec.layers}) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_checkpoint_weighs_what_its_headers_say_whatever_its_config_says(name: str) -> None:
    linear, quantization = FORMATS[name]
    stored = stored_llama(linear)
    for config in (LLAMA, {**LLAMA, "quantization_config": quantization}) if quantization else (LLAMA,):
        spec = merged(config, stored)
        assert checkpoint_bytes(spec) == spec.stored_bytes
        assert spec.parameters == spec_from_config(LLAMA, "m").parameters
        assert spec.notes == ()
        assert len({id(layer) for layer in spec.layers}) == 1


@pytest.mark.parametrize("name", [name for name, (_, quantization) in FORMATS.items() if quantization])
def test_what_the_config_says_about_a_matrix_is_kept_where_the_headers_agree(name: str) -> None:
    linear, quantization = FORMATS[name]
    config = {**LLAMA, "quantization_config": quantization}
    expected = spec_from_config(config, "m")
    spec = merged(config, stored_llama(linear))
    assert [each.storage for each in spec.layers[0].tensors] == [each.storage for each in expected.layers[0].tensors]


@pytest.mark.parametrize("linear", [plain, gptq, fp8_block, nvfp4])
def test_experts_stored_one_by_one_are_counted_together(linear: Linear) -> None:
    spec = merged(MIXTRAL, stored_llama(linear, experts=4))
    assert checkpoint_bytes(spec) == spec.stored_bytes
    assert {each.count for each in spec.layers[0].tensors if each.role is Role.EXPERT} == {4}
    assert spec.parameters == spec_from_config(MIXTRAL, "m").parameters


def test_groups_of_another_size_than_the_config_says_are_seen() -> None:
    def linear(name: str, out: int, wide: int) -> Stored:
        return {**gptq(name, out, wide), f"{name}.scales": tensor("F16", wide // 32, out)}

    spec = merged({**LLAMA, "quantization_config": GROUPED}, stored_llama(linear))
    query = next(each for each in spec.layers[0].tensors if each.name == "self_attn.q_proj.weight")
    assert query.storage is not None
    assert (query.storage.group_in, query.storage.scale_bits, query.storage.bits) == (32, 16, 4)
    assert checkpoint_bytes(spec) == spec.stored_bytes


def test_plain_weights_under_a_config_that_calls_them_quantized_are_plain() -> None:
    spec = merged({**LLAMA, "quantization_config": GROUPED}, stored_llama(plain))
    assert checkpoint_bytes(spec) == spec.stored_bytes
    assert all(each.storage is None for each in spec.layers[0].tensors)


def test_one_layer_left_plain_makes_a_layer_of_its_own() -> None:
    stored = stored_llama(fp8_block)
    for name in ("gate_proj", "up_proj", "down_proj"):
        full = f"model.layers.1.mlp.{name}"
        shape = stored[f"{full}.weight"].shape
        del stored[f"{full}.weight_scale_inv"]
        stored[f"{full}.weight"] = tensor("BF16", *shape)
    spec = merged({**LLAMA, "quantization_config": FORMATS["fp8 block"][1]}, stored)
    assert checkpoint_bytes(spec) == spec.stored_bytes
    assert spec.layers[0] is spec.layers[2]
    assert spec.layers[0] is not spec.layers[1]


@pytest.mark.parametrize("prefix", ["", "language_model.model.", "model.language_model.", "transformer."])
def test_wrappers_in_front_of_the_names_do_not_matter(prefix: str) -> None:
    spec = merged(LLAMA, stored_llama(plain, prefix=prefix))
    assert spec.notes == ()
    assert spec.weights_source == "headers"


def test_names_of_another_family_leave_the_configs_tensors_and_say_so() -> None:
    stored = {f"decoder.block_{index}.matrix": tensor("BF16", 64, 64) for index in range(4)}
    spec = merged(LLAMA, stored)
    assert spec.weights_source == "config"
    assert spec.parameters == spec_from_config(LLAMA, "m").parameters
    assert any("names in the headers" in note for note in spec.notes)


def test_a_tensor_that_nothing_predicts_is_kept_and_named() -> None:
    stored = stored_llama(plain)
    stored["model.layers.1.self_attn.rare.weight"] = tensor("F32", 10, 10)
    stored["model.extra.weight"] = tensor("BF16", 8)
    spec = merged(LLAMA, stored)
    assert checkpoint_bytes(spec) == spec.stored_bytes
    (note,) = spec.notes
    assert "416 bytes" in note
    assert "model.layers.1.self_attn.rare.weight" in note
    assert "extra.weight" in note


def test_a_predicted_tensor_that_is_not_stored_is_left_out_and_named() -> None:
    config = {**LLAMA, "attention_bias": True}
    spec = merged(config, stored_llama(plain))
    assert checkpoint_bytes(spec) == spec.stored_bytes
    (note,) = spec.notes
    assert "predicted but not stored" in note
    assert "self_attn.q_proj.bias" in note


def test_a_head_that_is_stored_although_tied_is_not_loaded() -> None:
    spec = merged({**LLAMA, "tie_word_embeddings": True}, stored_llama(plain))
    assert spec.tied_embeddings
    assert spec.stored_bytes == checkpoint_bytes(spec) + 2 * VOCAB * HIDDEN
    assert any("once more" in note for note in spec.notes)


def test_a_head_that_is_not_stored_is_tied() -> None:
    stored = stored_llama(plain)
    del stored["lm_head.weight"]
    spec = merged(LLAMA, stored)
    assert spec.tied_embeddings
    assert checkpoint_bytes(spec) == spec.stored_bytes


def test_a_padded_vocabulary_takes_the_shape_that_is_stored() -> None:
    stored = stored_llama(plain)
    stored["model.embed_tokens.weight"] = stored["lm_head.weight"] = tensor("BF16", VOCAB + 64, HIDDEN)
    spec = merged(LLAMA, stored)
    assert checkpoint_bytes(spec) == spec.stored_bytes
    assert any("another shape" in note for note in spec.notes)


def test_buffers_of_older_tools_are_passed_over() -> None:
    stored = stored_llama(plain)
    for index in range(LAYERS):
        stored[f"model.layers.{index}.self_attn.rotary_emb.inv_freq"] = tensor("F32", 16)
        stored[f"model.layers.{index}.self_attn.k_proj.k_scale"] = tensor("F32")
    spec = merged(LLAMA, stored)
    assert spec.notes == ()
    assert spec.stored_bytes == checkpoint_bytes(spec) + LAYERS * (16 * 4 + 4)


def test_prediction_layers_behind_the_last_one_stay_apart() -> None:
    stored = stored_llama(plain)
    stored[f"model.layers.{LAYERS}.eh_proj.weight"] = tensor("BF16", HIDDEN, 2 * HIDDEN)
    stored["mtp.norm.weight"] = tensor("BF16", HIDDEN)
    spec = merged(LLAMA, stored)
    assert {each.role for each in spec.mtp} == {Role.MTP}
    assert len(spec.mtp) == 2
    assert checkpoint_bytes(spec) == spec.stored_bytes
    assert spec.parameters == spec_from_config(LLAMA, "m").parameters


def test_a_config_that_names_no_type_takes_that_of_the_weights() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "torch_dtype"}
    spec = merge_headers(spec_from_config(config, "m"), inventory(stored_llama(plain)), dtype_is_known=False)
    assert spec.dtype is DType.BF16
    assert checkpoint_bytes(spec) == spec.stored_bytes


def test_weights_stored_wider_than_they_are_loaded_keep_the_loaded_type() -> None:
    stored = {name: tensor("F32", *each.shape) for name, each in stored_llama(plain).items()}
    spec = merged(LLAMA, stored)
    assert spec.dtype is DType.BF16
    assert spec.stored_bytes == 2 * checkpoint_bytes(spec)


def test_fused_matrices_under_other_names_are_the_same_when_they_hold_as_much() -> None:
    stored = stored_llama(plain)
    for index in range(LAYERS):
        for name in ("gate_proj", "up_proj"):
            del stored[f"model.layers.{index}.mlp.{name}.weight"]
        stored[f"model.layers.{index}.mlp.gate_up_proj.weight"] = tensor("BF16", 2 * INNER, HIDDEN)
    spec = merged(LLAMA, stored)
    assert checkpoint_bytes(spec) == spec.stored_bytes
    assert spec.notes == ()


def test_bitsandbytes_states_belong_to_their_matrix() -> None:
    def linear(name: str, out: int, wide: int) -> Stored:
        return {
            f"{name}.weight": tensor("U8", out * wide // 2, 1),
            f"{name}.weight.absmax": tensor("U8", out * wide // 64),
            f"{name}.weight.nested_absmax": tensor("F32", max(out * wide // 64 // 256, 1)),
            f"{name}.weight.nested_quant_map": tensor("F32", 256),
            f"{name}.weight.quant_map": tensor("F32", 16),
            f"{name}.weight.quant_state.bitsandbytes__nf4": tensor("U8", 93),
        }

    spec = merged(LLAMA, stored_llama(linear))
    assert checkpoint_bytes(spec) == spec.stored_bytes
    assert spec.notes == ()


def test_the_blocks_and_scales_of_gpt_oss_belong_to_their_experts() -> None:
    config = {
        **LLAMA,
        "model_type": "gpt_oss",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 32,
        "sliding_window": 64,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
        },
    }
    pytest.importorskip("memplan.introspect.families.decoders")
    stored = {}
    plain_spec = spec_from_config({key: value for key, value in config.items() if key != "quantization_config"}, "m")
    for index, layer in enumerate(plain_spec.layers):
        for each in layer.tensors:
            name = f"model.layers.{index}.{each.name}"
            if each.name.endswith(("gate_up_proj", "down_proj")):
                count, out, wide = 4, each.shape[-2], each.shape[-1]
                stored[f"{name}_blocks"] = tensor("U8", count, out, wide // 32, 16)
                stored[f"{name}_scales"] = tensor("U8", count, out, wide // 32)
            else:
                stored[name] = tensor("BF16", *((each.count,) if each.count > 1 else ()), *each.shape)
    for each in plain_spec.shared:
        stored[each.name] = tensor("BF16", *each.shape)
    spec = merged(config, stored)
    assert checkpoint_bytes(spec) == spec.stored_bytes
    assert spec.notes == ()
