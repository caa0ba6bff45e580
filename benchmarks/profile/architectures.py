"""Small models of many families, as configs: enough layers and tokens that a pass weighs more than a few megabytes.

Each entry is a raw Hugging Face config and what differs from the usual request. They are made up: a family's code is
what is tested, not a checkpoint.
"""

from __future__ import annotations

from typing import Any

_DECODER = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _decoder(model_type: str, architecture: str, **differs: Any) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], **_DECODER, **differs}


def _moe(model_type: str, architecture: str, **differs: Any) -> dict[str, Any]:
    usual = {"num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512}
    return _decoder(model_type, architecture, **{**usual, **differs})


_LATENT = {
    "q_lora_rank": 192,
    "kv_lora_rank": 128,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_ENCODER = {
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 8192,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}
_VISION = {**_ENCODER, "image_size": 224, "patch_size": 16, "num_labels": 10}
_CLIP_PART = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 3, "num_attention_heads": 8}
_UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [64, 128, 128],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 256,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _decoder("llama", "LlamaForCausalLM"),
    "mistral (window)": _decoder("mistral", "MistralForCausalLM", sliding_window=128),
    "qwen2": _decoder("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _decoder("qwen3", "Qwen3ForCausalLM", head_dim=64),
    "gemma2 (soft caps)": _decoder("gemma2", "Gemma2ForCausalLM", head_dim=64, sliding_window=128),
    "gemma3 (windows)": _decoder("gemma3_text", "Gemma3ForCausalLM", head_dim=64, sliding_window=128),
    "phi3": _decoder("phi3", "Phi3ForCausalLM"),
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 512,
        "n_layer": 4,
        "n_head": 8,
        "n_positions": 1024,
        "vocab_size": 8192,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gpt-neox": _decoder("gpt_neox", "GPTNeoXForCausalLM"),
    "opt": _decoder("opt", "OPTForCausalLM", ffn_dim=2048, word_embed_proj_dim=512),
    "falcon": _decoder("falcon", "FalconForCausalLM", multi_query=True, new_decoder_architecture=False),
    "mixtral (MoE)": _moe("mixtral", "MixtralForCausalLM", intermediate_size=512),
    "qwen3-moe (MoE)": _moe("qwen3_moe", "Qwen3MoeForCausalLM", head_dim=64),
    "olmoe (MoE)": _moe("olmoe", "OlmoeForCausalLM", intermediate_size=512),
    "gpt-oss (MoE, sinks)": _moe(
        "gpt_oss", "GptOssForCausalLM", intermediate_size=512, head_dim=64, sliding_window=128
    ),
    "deepseek-v3 (MLA, MoE)": _moe("deepseek_v3", "DeepseekV3ForCausalLM", **_LATENT),
    "mamba": {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "hidden_size": 256,
        "state_size": 16,
        "num_hidden_layers": 2,
        "vocab_size": 4096,
        "prompt_tokens": 64,
    },
    "falcon-h1 (hybrid)": _decoder(
        "falcon_h1", "FalconH1ForCausalLM", head_dim=64, mamba_d_ssm=512, mamba_n_heads=8, mamba_d_state=32
    ),
    "qwen3-next (hybrid, MoE)": _moe(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        head_dim=64,
        shared_expert_intermediate_size=512,
        linear_num_key_heads=4,
        linear_num_value_heads=8,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
    ),
    "bert": {"model_type": "bert", "architectures": ["BertForMaskedLM"], **_ENCODER},
    "modernbert": {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], **_ENCODER},
    "t5 (encoder, decoder)": {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 1024,
        "num_layers": 3,
        "num_heads": 8,
        "vocab_size": 8192,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
    "bart (encoder, decoder)": {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "d_model": 512,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048,
        "vocab_size": 8192,
        "max_position_embeddings": 1024,
    },
    "whisper (sound)": {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "d_model": 256,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 1024,
        "decoder_ffn_dim": 1024,
        "vocab_size": 8192,
        "num_mel_bins": 80,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 3,
    },
    "vit": {"model_type": "vit", "architectures": ["ViTForImageClassification"], **_VISION},
    "dinov2": {"model_type": "dinov2", "architectures": ["Dinov2ForImageClassification"], **_VISION, "mlp_ratio": 4},
    "swin": {
        "model_type": "swin",
        "architectures": ["SwinForImageClassification"],
        "image_size": 224,
        "patch_size": 4,
        "embed_dim": 48,
        "depths": [2, 2, 2],
        "num_heads": [2, 4, 8],
        "window_size": 7,
    },
    "clip": {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": 256,
        "text_config": {
            **_CLIP_PART,
            "vocab_size": 8192,
            "max_position_embeddings": 77,
            "model_type": "clip_text_model",
        },
        "vision_config": {**_CLIP_PART, "image_size": 224, "patch_size": 16, "model_type": "clip_vision_model"},
    },
    "unet 256px": {**_UNET, "resolution": 256},
    "unet 384px": {**_UNET, "resolution": 384},
    "unet 512px": {**_UNET, "resolution": 512},
}
