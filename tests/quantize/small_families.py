"""Small models of many more families, by the kind of thing that sets them apart; random weights, as checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_models import VOCABULARY

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": 0,
    "pad_token_id": 0,
}
_WIDE: dict[str, Any] = {**_SMALL, "head_dim": 16}
_ROUTED = {"num_local_experts": 4, "num_experts_per_tok": 2}
_NAMED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
_DEEPSEEK = {
    **_LATENT,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "topk_group": 1,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_OLD = {"vocab_size": VOCABULARY, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0}
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_PATCHES = {**_VISION, "image_size": 28, "patch_size": 14}
_MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_TOKENS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
_LLAMA4 = {
    **_WIDE,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "interleave_moe_layer_step": 1,
}

Table = dict[str, tuple[str, dict[str, Any]]]
# Checkpoints that hold experts one by one.
EXPERTS: Table = {
    "mixtral": ("MixtralConfig", {**_SMALL, **_ROUTED}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_SMALL, **_NAMED, "shared_expert_intermediate_size": 64}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_WIDE, **_NAMED, "num_experts": 8}),
    "olmoe": ("OlmoeConfig", {**_SMALL, **_NAMED, "intermediate_size": 32}),
    "deepseek_v2": ("DeepseekV2Config", {**_SMALL, **_DEEPSEEK, "n_group": 1}),
    "deepseek_v3": ("DeepseekV3Config", {**_SMALL, **_DEEPSEEK, "n_group": 2}),
    "phimoe": ("PhimoeConfig", {**_SMALL, **_ROUTED, "intermediate_size": 32}),
    "jamba": (
        "JambaConfig",
        {**_SMALL, **_NAMED, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
        | {"expert_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False},
    ),
    "qwen3_next": ("Qwen3NextConfig", {**_WIDE, **_NAMED, **_DELTA, "shared_expert_intermediate_size": 32}),
    "ernie4_5_moe": (
        "Ernie4_5_MoeConfig",
        {**_SMALL, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_start_index": 1},
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {**_WIDE, "num_hidden_layers": 3, "layers_block_type": ["mamba", "moe", "attention"]}
        | {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 16}
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
        | {"moe_shared_expert_intermediate_size": 64},
    ),
}
# Checkpoints that hold them in one tensor.
FUSED_EXPERTS: Table = {
    "granitemoe": ("GraniteMoeConfig", {**_SMALL, **_ROUTED, "intermediate_size": 32}),
    "gpt_oss": ("GptOssConfig", {**_WIDE, **_ROUTED, "intermediate_size": 32}),
    "llama4": ("Llama4TextConfig", _LLAMA4),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        {**_SMALL, **_ROUTED, **_MAMBA, "shared_intermediate_size": 64, "intermediate_size": 32}
        | {"layer_types": ["mamba", "attention"]},
    ),
}
DENSE: Table = {
    "qwen2": ("Qwen2Config", _SMALL),
    "gemma2": ("Gemma2Config", _WIDE),
    "phi": ("PhiConfig", _SMALL),
    "glm4": ("Glm4Config", _WIDE),
    "olmo2": ("Olmo2Config", _SMALL),
    "exaone4": ("Exaone4Config", _SMALL),
    "granite": ("GraniteConfig", _SMALL),
    "starcoder2": ("Starcoder2Config", _SMALL),
    "stablelm": ("StableLmConfig", _SMALL),
    "nemotron": ("NemotronConfig", _SMALL),
    "apertus": ("ApertusConfig", _SMALL),
    "minicpm3": ("MiniCPM3Config", {**_SMALL, **_LATENT}),
    "gemma4": ("Gemma4TextConfig", {**_WIDE, "vocab_size_per_layer_input": VOCABULARY}),
    "falcon": ("FalconConfig", {**_OLD, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "mpt": ("MptConfig", {**_OLD, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "bloom": ("BloomConfig", {**_OLD, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "gptj": ("GPTJConfig", {**_OLD, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}),
    "gpt_bigcode": ("GPTBigCodeConfig", {**_OLD, "n_embd": 64, "n_layer": 2, "n_head": 4}),
}
HYBRID: Table = {
    "qwen3_5": ("Qwen3_5TextConfig", {**_WIDE, **_DELTA}),
    "falcon_h1": ("FalconH1Config", {**_WIDE, **_MAMBA, "mamba_n_heads": 4, "mamba_d_ssm": 64}),
    "mamba2": (
        "Mamba2Config",
        {**_OLD, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "num_heads": 8, "head_dim": 16}
        | {"n_groups": 1, "chunk_size": 16},
    ),
    "bamba": ("BambaConfig", {**_SMALL, **_MAMBA, "attn_layer_indices": [1]}),
    "lfm2": ("Lfm2Config", {**_SMALL, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {**_SMALL, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 32},
    ),
    "zamba2": (
        "Zamba2Config",
        {**_SMALL, "num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "mamba_d_state": 16}
        | {"mamba_ngroups": 1, "n_mamba_heads": 8, "chunk_size": 16, "num_mem_blocks": 1, "adapter_rank": 8},
    ),
}
SEEING: Table = {
    "qwen2_vl": (
        "Qwen2VLConfig",
        {
            "text_config": {**_SMALL, "rope_parameters": _MROPE},
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
            "vocab_size": VOCABULARY,
            **_TOKENS,
        },
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoeConfig",
        {
            "text_config": {**_WIDE, **_NAMED, "rope_parameters": _MROPE},
            "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
            | {"out_hidden_size": 64, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            **_TOKENS,
        },
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **_SMALL},
            "vision_config": {"model_type": "clip_vision_model", **_PATCHES},
            "image_token_index": 5,
        },
    ),
    "gemma3": (
        "Gemma3Config",
        {"text_config": {**_WIDE, "sliding_window": 16}, "vision_config": _PATCHES, "mm_tokens_per_image": 4},
    ),
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": {"model_type": "mistral", **_SMALL},
            "vision_config": {"model_type": "pixtral", **_PATCHES, "head_dim": 16},
            "image_token_index": 5,
        },
    ),
    "llama4_vl": (
        "Llama4Config",
        {
            "text_config": _LLAMA4,
            "vision_config": {**_PATCHES, "vision_output_dim": 32, "projector_input_dim": 32}
            | {"projector_output_dim": 32},
            "image_token_index": 5,
        },
    ),
    "paligemma": (
        "PaliGemmaConfig",
        {
            "text_config": {"model_type": "gemma", **_WIDE},
            "vision_config": {"model_type": "siglip_vision_model", **_PATCHES, "projection_dim": 64},
            "projection_dim": 64,
            "hidden_size": 64,
            "image_token_index": 5,
        },
    ),
}
UNKNOWN: Table = {
    "dbrx": (
        "DbrxConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "jetmoe": ("JetMoeConfig", {**_SMALL, **_ROUTED, "kv_channels": 16}),
    "longcat": (
        "LongcatFlashConfig",
        {**_SMALL, **_LATENT, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32, "n_routed_experts": 4}
        | {"zero_expert_num": 2, "moe_topk": 2, "num_layers": 2, "num_hidden_layers": 4, "head_dim": 16},
    ),
    "gemma3n": (
        "Gemma3nTextConfig",
        {**_WIDE, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "laurel_rank": 8}
        | {"num_kv_shared_layers": 1, "num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
        | {"intermediate_size": [128] * 3, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 3},
    ),
    "mamba": (
        "MambaConfig",
        {**_OLD, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 32},
    ),
}
_ALL: Table = {**EXPERTS, **FUSED_EXPERTS, **DENSE, **HYBRID, **SEEING, **UNKNOWN}


def save_family(family: str, folder: Path) -> Path:
    """Save a random model of a family and return its folder. Norms and routers are uneven, as in trained models."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    name, settings = _ALL[family]
    kind = transformers.AutoModelForImageTextToText if family in SEEING else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = kind.from_config(getattr(transformers, name)(**settings), dtype=torch.bfloat16)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1 and "norm" in name.lower():
                value.mul_(1 + 0.3 * torch.randn_like(value))
            elif value.dim() >= 2:
                value.normal_(0, 0.08)
        for name, value in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                value.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder
