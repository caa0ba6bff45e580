"""Small configs of every family that is more than a decoder, and that transformers can build: (class, config) pairs."""

from __future__ import annotations

Case = tuple[str, dict[str, object]]

TEXT: dict[str, object] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
QWEN_VISION: dict[str, object] = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 40,
    "out_hidden_size": 64,
    "num_heads": 4,
}
GRID_VISION = {**QWEN_VISION, "num_position_embeddings": 16}
GLM_VISION = {**QWEN_VISION, "image_size": 56, "patch_size": 14}
HYBRID = {
    **TEXT,
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention"],
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1}
LLAMA = {**TEXT, "model_type": "llama"}
MISTRAL = {**TEXT, "model_type": "mistral", "head_dim": 16}
QWEN2 = {**TEXT, "model_type": "qwen2"}
CLIP = {**VISION, "model_type": "clip_vision_model"}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
PIXTRAL = {**VISION, "model_type": "pixtral", "head_dim": 8}
INTERN_VISION = {**VISION, "model_type": "internvl_vision", "image_size": [56, 56], "patch_size": [14, 14]}


def wrapper(class_name: str, model_type: str, text: object, vision: object, **keys: object) -> Case:
    return class_name, {"model_type": model_type, "text_config": text, "vision_config": vision, **keys}


LLAVA_LIKE: list[Case] = [
    wrapper("LlavaForConditionalGeneration", "llava", LLAMA, CLIP),
    wrapper("LlavaForConditionalGeneration", "llava", MISTRAL, PIXTRAL, vision_feature_layer=-1),
    wrapper(
        "LlavaForConditionalGeneration",
        "llava",
        {**QWEN2, "tie_word_embeddings": True},
        {**SIGLIP, "vision_use_head": True},
        vision_feature_layer=[-1, -2],
        multimodal_projector_bias=False,
    ),
    wrapper("LlavaNextForConditionalGeneration", "llava_next", MISTRAL, CLIP),
    wrapper("LlavaOnevisionForConditionalGeneration", "llava_onevision", QWEN2, SIGLIP),
    wrapper(
        "AyaVisionForConditionalGeneration",
        "aya_vision",
        {**TEXT, "model_type": "cohere2", "head_dim": 16},
        SIGLIP,
        alignment_intermediate_size=80,
    ),
    wrapper(
        "PaliGemmaForConditionalGeneration",
        "paligemma",
        {**TEXT, "model_type": "gemma", "head_dim": 16},
        {**SIGLIP, "projection_dim": 64},
        projection_dim=64,
    ),
    wrapper("Mistral3ForConditionalGeneration", "mistral3", MISTRAL, PIXTRAL, tie_word_embeddings=False),
    wrapper("Idefics3ForConditionalGeneration", "idefics3", LLAMA, VISION, scale_factor=2, pad_token_id=0),
    wrapper(
        "SmolVLMForConditionalGeneration",
        "smolvlm",
        LLAMA,
        VISION,
        scale_factor=4,
        pad_token_id=0,
        tie_word_embeddings=True,
    ),
    wrapper(
        "InternVLForConditionalGeneration",
        "internvl",
        QWEN2,
        {**INTERN_VISION, "attention_bias": True},
        tie_word_embeddings=False,
    ),
    wrapper(
        "InternVLForConditionalGeneration",
        "internvl",
        {**QWEN2, "tie_word_embeddings": True},
        {**INTERN_VISION, "use_qk_norm": True, "norm_type": "rms_norm", "use_mean_pooling": False},
    ),
]

GOOGLE_AND_META: list[Case] = [
    wrapper("Gemma3ForConditionalGeneration", "gemma3", {**TEXT, "model_type": "gemma3_text", "head_dim": 16}, SIGLIP),
    wrapper(
        "Gemma4ForConditionalGeneration",
        "gemma4",
        {
            **TEXT,
            "model_type": "gemma4_text",
            "num_hidden_layers": 4,
            "head_dim": 16,
            "global_head_dim": 32,
            "vocab_size_per_layer_input": 300,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "enable_moe_block": False,
        },
        {
            "model_type": "gemma4_vision",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "patch_size": 4,
            "position_embedding_size": 20,
        },
        audio_config={
            "model_type": "gemma4_audio",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "output_proj_dims": 24,
            "subsampling_conv_channels": [8, 4],
        },
    ),
    wrapper(
        "MllamaForConditionalGeneration",
        "mllama",
        {**TEXT, "model_type": "mllama_text_model", "cross_attention_layers": [1]},
        {
            "model_type": "mllama_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
        },
    ),
    wrapper(
        "Llama4ForConditionalGeneration",
        "llama4",
        {
            **TEXT,
            "model_type": "llama4_text",
            "head_dim": 16,
            "num_local_experts": 4,
            "intermediate_size_mlp": 80,
            "interleave_moe_layer_step": 2,
        },
        {
            **VISION,
            "model_type": "llama4_vision_model",
            "image_size": 28,
            "intermediate_size": 128,
            "projector_input_dim": 40,
            "projector_output_dim": 40,
            "vision_output_dim": 40,
        },
    ),
]

QWEN: list[Case] = [
    wrapper(
        "Qwen2VLForConditionalGeneration",
        "qwen2_vl",
        {**TEXT, "model_type": "qwen2_vl_text"},
        {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "patch_size": 14},
    ),
    wrapper("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", {**TEXT, "model_type": "qwen2_5_vl_text"}, QWEN_VISION),
    wrapper(
        "Qwen3VLForConditionalGeneration",
        "qwen3_vl",
        {**TEXT, "model_type": "qwen3_vl_text", "head_dim": 16},
        {**GRID_VISION, "deepstack_visual_indexes": [0, 1]},
    ),
    wrapper(
        "Qwen3VLMoeForConditionalGeneration",
        "qwen3_vl_moe",
        {
            **TEXT,
            **MOE,
            "model_type": "qwen3_vl_moe_text",
            "head_dim": 16,
            "mlp_only_layers": [1],
            "tie_word_embeddings": False,
        },
        {**GRID_VISION, "deepstack_visual_indexes": [0, 1]},
    ),
    wrapper("Qwen3_5ForConditionalGeneration", "qwen3_5", {**HYBRID, "model_type": "qwen3_5_text"}, GRID_VISION),
    wrapper(
        "Qwen3_5MoeForConditionalGeneration",
        "qwen3_5_moe",
        {**HYBRID, **MOE, "model_type": "qwen3_5_moe_text", "shared_expert_intermediate_size": 20},
        GRID_VISION,
    ),
    wrapper(
        "Qwen4ExpForConditionalGeneration",
        "qwen4_exp",
        {
            **HYBRID,
            **MOE,
            "model_type": "qwen4_exp_text",
            "shared_expert_intermediate_size": 20,
            "hc_lowrank": 12,
            "ple_layer_ids": [2],
            "ngram_vocab_size_base": 1000,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        },
        GRID_VISION,
    ),
    (
        "Qwen2AudioForConditionalGeneration",
        {
            "model_type": "qwen2_audio",
            "text_config": QWEN2,
            "audio_config": {
                "model_type": "qwen2_audio_encoder",
                "d_model": 32,
                "encoder_layers": 2,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 48,
                "num_mel_bins": 16,
                "max_source_positions": 20,
            },
        },
    ),
]

OTHERS: list[Case] = [
    wrapper(
        "Glm4vForConditionalGeneration",
        "glm4v",
        {**TEXT, "model_type": "glm4v_text", "attention_bias": True},
        GLM_VISION,
    ),
    wrapper(
        "Glm4vMoeForConditionalGeneration",
        "glm4v_moe",
        {**TEXT, **ROUTED, "model_type": "glm4v_moe_text", "first_k_dense_replace": 1, "head_dim": 16},
        GLM_VISION,
    ),
    wrapper(
        "MiniCPMV4_6ForConditionalGeneration",
        "minicpmv4_6",
        {**HYBRID, "model_type": "qwen3_5_text"},
        {**VISION, "model_type": "minicpmv4_6_vision"},
        merger_times=2,
        insert_layer_id=1,
    ),
    wrapper(
        "MiniMaxM3SparseForConditionalGeneration",
        "minimax_m3_vl",
        {
            **TEXT,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_layer_freq": [0, 1, 1],
            "dense_intermediate_size": 80,
            "shared_intermediate_size": 24,
            "n_shared_experts": 1,
            "rotary_dim": 8,
            "sparse_attention_config": {
                "use_sparse_attention": True,
                "sparse_index_dim": 8,
                "sparse_num_index_heads": 2,
                "sparse_attention_freq": [0, 1, 1],
                "sparse_disable_index_value": [0, 1, 1],
                "sparse_topk_blocks": 2,
                "sparse_block_size": 8,
                "sparse_score_type": "max",
                "sparse_init_block": 0,
                "sparse_local_block": 1,
            },
        },
        {
            **CLIP,
            "img_token_compression_config": {"spatial_merge_size": 2, "temporal_patch_size": 2},
        },
        projector_hidden_size=48,
    ),
    wrapper(
        "Kimi_K25ForConditionalGeneration",
        "kimi_k25",
        {
            **TEXT,
            **ROUTED,
            "model_type": "deepseek_v3",
            "num_key_value_heads": 4,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "n_group": 1,
            "topk_group": 1,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "pos_emb_height": 6,
            "pos_emb_width": 6,
        },
        tie_word_embeddings=False,
        projection_hidden_size=32,
    ),
    wrapper(
        "BlipForConditionalGeneration",
        "blip",
        {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 300,
            "max_position_embeddings": 20,
            "encoder_hidden_size": 32,
        },
        VISION,
    ),
    (
        "Phi4MultimodalForCausalLM",
        {
            **TEXT,
            "model_type": "phi4_multimodal",
            "vocab_size": 200100,
            "vision_config": {"num_hidden_layers": 1},
            "audio_config": {"num_blocks": 2},
        },
    ),
]

WRAPPERS = [*LLAVA_LIKE, *GOOGLE_AND_META, *QWEN, *OTHERS]
