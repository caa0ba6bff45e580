"""Quantized checkpoints whose exact size is published: what their configs imply must come to the same byte.

The truths are the element counts that the hub shows by type (packed weights unpacked, scales left out), and the
`total_size` of safetensors indexes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from memplan.budget.storage import checkpoint_bytes, stored_tensor_bytes
from memplan.domain.model import ModelSpec
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec
from memplan.introspect.quantized import apply_quantization, find_quantization

GPT_OSS_20B: dict[str, Any] = {
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    },
}
GPT_OSS_120B = {
    **GPT_OSS_20B,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
}
QWEN3_14B_MLX = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization": {"group_size": 64, "bits": 4},
}
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "num_nextn_predict_layers": 1,
    "vocab_size": 129280,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 163840,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}


def loaded(config: dict[str, Any]) -> ModelSpec:
    return apply_quantization(build_spec(Config(config), "test"), find_quantization(config), config=config)


def elements(spec: ModelSpec) -> dict[str, int]:
    """The weights of a checkpoint by how they are stored, multi-token prediction included."""
    counts: Counter[str] = Counter()
    layers = (tensor for layer in spec.layers for tensor in layer.tensors)
    for tensor in (*spec.shared, *spec.mtp, *layers):
        kind = tensor.storage.scheme if tensor.storage else (tensor.dtype or spec.dtype).value
        counts[kind] += tensor.num_elements
    return dict(counts)


@pytest.mark.parametrize(
    ("config", "total_bytes"),
    [
        pytest.param(GPT_OSS_20B, 13_761_264_768, id="gpt-oss-20b"),
        pytest.param(GPT_OSS_120B, 65_248_815_744, id="gpt-oss-120b"),
        pytest.param(QWEN3_14B_MLX, 8_307_783_680, id="Qwen3-14B in MLX 4 bit"),
    ],
)
def test_the_bytes_are_those_of_the_published_tensors(config: dict[str, Any], total_bytes: int) -> None:
    assert checkpoint_bytes(loaded(config)) == total_bytes


def test_deepseek_v3_has_the_published_weights_of_each_type() -> None:
    spec = loaded(DEEPSEEK_V3)
    counts = elements(spec)
    assert counts["fp8-block"] == 680_571_043_840
    assert counts["bfloat16"] == 3_918_786_560
    # 41,555,600 FP32 numbers: the scales of the blocks, and the 59 correction biases of the routers.
    layers = (tensor for layer in spec.layers for tensor in layer.tensors)
    fp8 = [tensor for tensor in (*spec.mtp, *layers) if tensor.storage]
    scales = sum(stored_tensor_bytes(tensor, spec.dtype) - tensor.num_elements for tensor in fp8) // 4
    assert scales + counts["float32"] == 41_555_600


def test_prediction_layers_are_counted_only_where_they_are_asked_for() -> None:
    spec = loaded(DEEPSEEK_V3)
    assert checkpoint_bytes(spec) == 688_574_839_360
    assert checkpoint_bytes(spec) - checkpoint_bytes(spec, with_mtp=False) > 11 * 10**9
