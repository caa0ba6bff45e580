"""Models of many families as transformers builds them on the meta device, small enough to build in a blink, and their
module trees.
"""

from __future__ import annotations

import json
import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from memplan.domain.model import ModelSpec
from memplan.engines.transformers.module_tree import Module, ModuleTree
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec

# Widths that make layers, embeddings and heads of different sizes weigh against each other.
_WIDTHS = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_ALL_HEADS = {"num_key_value_heads": 4}  # families that know no groups, and keep what they are given
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}

FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 32},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {**_EXPERTS, "head_dim": 16},
    "mixtral": _EXPERTS,
    "deepseek_v3": {**_LATENT, "num_key_value_heads": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16},
    "phi": {},
    "phi3": {},
    "gpt2": {**_ALL_HEADS, "n_embd": 64, "n_layer": 9, "n_head": 4, "n_positions": 256},
    "gpt_neox": _ALL_HEADS,
    "gpt_oss": {**_EXPERTS, "head_dim": 16, "sliding_window": 32},
    "falcon": {"num_key_value_heads": 1},
    "falcon-grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "bloom": {**_ALL_HEADS, "n_layer": 9, "n_head": 4},
    "olmo2": {},
    "cohere": {},
    "starcoder2": {},
    "stablelm": {},
    "opt": {**_ALL_HEADS, "ffn_dim": 160, "word_embed_proj_dim": 64},
    "granite": {},
    "qwen3_next": {**_EXPERTS, "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2},
    "mamba": {"state_size": 8},
}
# Caches of other kinds, whose placement is like that of one above.
STATEFUL: dict[str, dict[str, object]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2},
    "bamba": {"attn_layer_indices": [2, 5], "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "head_dim": 16},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"] * 3},
    "gemma3n_text": {
        "num_kv_shared_layers": 4,
        "head_dim": 16,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 3,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 1000,
        "intermediate_size": 160,
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0] * 9,
    },
    "llama4_text": {**_EXPERTS, "head_dim": 16, "attention_chunk_size": 32, "intermediate_size_mlp": 160},
    "deepseek_v32": {
        **_LATENT,
        "num_key_value_heads": 4,
        "num_experts_per_tok": 2,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 8,
    },
    "minimax": {**_EXPERTS, "head_dim": 16},
}


def config_of(family: str, **changes: object) -> PretrainedConfig:
    """Return the small config of a family; `llama-tied` is a llama with a tied head."""
    values = {**_WIDTHS, **{**FAMILIES, **STATEFUL}[family], **changes}
    return AutoConfig.for_model(family.partition("-")[0], **values)


def build(config: PretrainedConfig, device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Return the model of a config."""
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model.eval()


def spec_of(model: PreTrainedModel) -> ModelSpec:
    """Return what memplan reads from the model's config, as a file would hold it."""
    raw = json.loads(json.dumps(model.config.to_dict()))
    return build_spec(Config({**raw, "architectures": [type(model).__name__], "dtype": "bfloat16"}), "small")


def tree_of(model: PreTrainedModel) -> ModuleTree:
    """Return the module tree of a real model: parameters once, tied ones without a size."""
    tied = dict(getattr(model, "all_tied_weights_keys", {}) or {})
    whole = set(model._no_split_modules or ())

    def convert(name: str, module: torch.nn.Module) -> Module:
        prefix = f"{name}." if name else ""
        own = tuple(
            (prefix + key, 0 if prefix + key in tied else value.numel() * value.element_size())
            for key, value in module.named_parameters(recurse=False)
        )
        buffers = tuple(
            (prefix + key, value.numel() * value.element_size()) for key, value in module.named_buffers(recurse=False)
        )
        children = tuple(convert(prefix + key, child) for key, child in module.named_children())
        leaves = tuple(
            sum(size for _, size in (*one.parameters, *one.buffers))
            for child in children
            for one in child.walk()
            if one.parameters or one.buffers
        )
        return Module(
            name=name,
            children=children,
            parameters=own,
            buffers=buffers,
            is_whole=type(module).__name__ in whole,
            leaf_bytes=leaves,
        )

    return ModuleTree(root=convert("", model), tied=tuple(tied.items()))
