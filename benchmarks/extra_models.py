"""Models that records name and the catalogue does not have: what is published of them, as a config or as a likeness.

gemma-4-12B-it: hidden size, layers and heads as SGLang's own test of that model's config gives them; no vision or audio
tower, only embedders that are too small to matter. Qwen3.8-27B: the same class, caches and vocabulary as Qwen3.6-27B.
"""

from __future__ import annotations

LIKE = {
    "Qwen/Qwen3.8-27B": "Qwen/Qwen3.6-27B",
    "vonjack/Phi-3-mini-4k-instruct-LLaMAfied": "microsoft/Phi-3-mini-4k-instruct",
}

_GEMMA_LAYERS = ["full_attention" if index % 6 == 5 else "sliding_attention" for index in range(48)]
CONFIGS: dict[str, dict[str, object]] = {
    "google/gemma-4-12B-it": {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified_text",
        "torch_dtype": "bfloat16",
        "vocab_size": 262144,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "sliding_window": 1024,
        "max_position_embeddings": 262144,
        "layer_types": _GEMMA_LAYERS,
        "tie_word_embeddings": True,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "rope_parameters": {
            "full_attention": {"rope_theta": 1000000.0, "rope_type": "proportional", "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    },
}
