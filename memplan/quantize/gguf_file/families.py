"""Families whose conversion to GGUF is known: their tensors' names, order and settings.

llama.cpp turns pairs of neighbouring features where transformers turns the first half against the second, so rows of
queries and keys of `llama` are laid out anew; the other families are turned as transformers does.

Source: conversion/llama.py and conversion/qwen.py of llama.cpp as vendored by llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.errors import UnsupportedModel
from memplan.quantize.unsupported import UnsupportedHere
from memplan.records import dataclass

_ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_SCALINGS = (None, "default", "linear", "yarn", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What llama.cpp must know of a model. `rotary` is the model's own setting of it."""

    architecture: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    context_tokens: int
    vocab_size: int
    norm_epsilon: float
    rope_theta: float
    rotary: Mapping[str, Any]

    def turned_heads(self, name: str) -> int:
        """Of a tensor by its name in the checkpoint: how many heads' rows are laid out anew; 0 for none."""
        if self.architecture != "llama":
            return 0
        if name.endswith(("q_proj.weight", "q_proj.bias")):
            return self.num_heads
        return self.num_kv_heads if name.endswith(("k_proj.weight", "k_proj.bias")) else 0


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json. Raises: UnsupportedModel for one whose conversion is not known here."""
    named = str((config.get("architectures") or ["a model without a name"])[0])
    if named not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"how {named} is written as GGUF is not known here", hint=f"known are {', '.join(_ARCHITECTURES)}"
        )
    rotary = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = rotary.get("rope_type", rotary.get("type"))
    if kind not in _SCALINGS:
        raise UnsupportedHere(f"rotary scaling `{kind}` as GGUF is not known here")
    if config.get("use_sliding_window") or (config.get("sliding_window") and "use_sliding_window" not in config):
        raise UnsupportedHere(f"sliding windows of {named} as GGUF are not known here")
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    return Family(
        architecture=_ARCHITECTURES[named],
        num_layers=int(config["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=int(config.get("head_dim") or hidden // heads),
        hidden_size=hidden,
        intermediate_size=int(config["intermediate_size"]),
        context_tokens=int(config["max_position_embeddings"]),
        vocab_size=int(config["vocab_size"]),
        norm_epsilon=float(config["rms_norm_eps"]),
        rope_theta=float(rotary.get("rope_theta", config.get("rope_theta", 10000.0))),
        rotary=rotary,
    )
