"""Small models of many families with random weights, saved as checkpoints: what the quantizer's tests run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

VOCABULARY = 320
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SMALL),
    "qwen3": ("Qwen3Config", {**_SMALL, "head_dim": 32}),
    "gemma3": ("Gemma3TextConfig", {**_SMALL, "head_dim": 16, "sliding_window": 16}),
    "phi3": ("Phi3Config", {**_SMALL, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}),
    "cohere": ("CohereConfig", {**_SMALL, "eos_token_id": 1, "bos_token_id": 2}),
    "opt": (
        "OPTConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 64,
        },
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
    ),
}
FAMILIES = tuple(_CONFIGS)


def save_model(family: str, folder: Path, *, seed: int = 0, max_shard: str = "5GB") -> Path:
    """Save a random model of a family and return its folder. Norms are uneven, as in trained models."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    name, settings = _CONFIGS[family]
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings), dtype=torch.bfloat16)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() == 1 and "norm" in name.lower():
                value.mul_(1 + 0.3 * torch.randn_like(value))
    model.save_pretrained(folder, max_shard_size=max_shard)
    return folder


def windows(num_batches: int = 3, batch: int = 4, tokens: int = 32) -> list[torch.Tensor]:
    """Random windows, in batches."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (batch, tokens), generator=generator) for _ in range(num_batches)]
