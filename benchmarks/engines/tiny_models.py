"""Writes small models of random weights, each with a tokenizer, one for every shape of cache. Runs under an interpreter
that has torch, transformers and tokenizers; needs no network.

    python benchmarks/engines/tiny_models.py SHAPE DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
# By shape: the architecture, and where its sizes differ.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "grouped-query": ("llama", {}),
    "multi-query": ("llama", {"num_key_value_heads": 1, "num_hidden_layers": 3}),
    "hybrid-sliding": (
        "gemma3_text",
        {
            "num_hidden_layers": 6,
            "sliding_window": 256,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        },
    ),
    "sliding": ("mistral", {"sliding_window": 512}),
    "experts": ("qwen3_moe", {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}),
    "latent": (
        "deepseek_v2",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 512,
            "q_lora_rank": None,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 64,
            "v_head_dim": 32,
            "first_k_dense_replace": 4,  # no experts
        },
    ),
    "int8": ("llama", {}),
}


def write_model(shape: str, folder: Path) -> None:
    """Write config, weights and tokenizer into `folder`."""
    architecture, sizes = SHAPES[shape]
    write_tokenizer(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**_SIZES, **sizes})
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    if shape == "int8":
        quantize(folder)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["how much room is there"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)


def quantize(folder: Path) -> None:
    """Round the linear layers to 8 bits with a scale for every row, as a compressed-tensors checkpoint: what
    `memplan quantize --method int8` makes.
    """
    path = folder / "model.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(path).items():
        if ".layers." not in name or weight.dim() != 2:
            tensors[name] = weight
            continue
        scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (weight.float() / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale.to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})
    numbers = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**numbers, "strategy": "channel", "dynamic": False},
        "input_activations": {**numbers, "strategy": "token", "dynamic": True},
    }
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    write_model(sys.argv[1], Path(sys.argv[2]))
