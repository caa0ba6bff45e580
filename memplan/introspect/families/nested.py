"""A language model inside a larger one: reading its part of the config, and setting it among its towers.

The decoder itself is built by its own family. What changes inside a wrapper is where its keys stand, which of them
are left to the class's defaults (published configs of wrappers are often trimmed), who decides that the head is tied,
and the prefix of every tensor's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from memplan.domain.model import ModelSpec, Tower
from memplan.domain.tensors import Tensor
from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config
from memplan.introspect.families import FAMILIES, load_family
from memplan.introspect.families.decoder import architecture
from memplan.records import replace

_QWEN2 = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}
_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
_GEMMA3 = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}

# Source: the defaults of transformers 5.23's configuration classes, for the keys that decide a size.
DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "llama": _LLAMA,
    "mistral": {
        **_LLAMA,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "ministral3": {
        **_LLAMA,
        "intermediate_size": 14336,
        "num_hidden_layers": 34,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 131072,
        "max_position_embeddings": 262144,
    },
    "qwen2": _QWEN2,
    "qwen3": {**_QWEN2, "head_dim": 128},
    "phi3": {
        **_LLAMA,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
    },
    "gemma": {
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
    },
    "gemma2": {**_GEMMA3, "vocab_size": 256000, "max_position_embeddings": 8192},
    "gemma3_text": _GEMMA3,
    "llama4_text": {
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "vocab_size": 202048,
        "max_position_embeddings": 131072,
    },
    "glm4v_text": {
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "vocab_size": 151552,
        "max_position_embeddings": 32768,
    },
    "glm4v_moe_text": {
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "attention_bias": True,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "first_k_dense_replace": 1,
        "vocab_size": 151424,
        "max_position_embeddings": 65536,
    },
    "cohere2": {
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "head_dim": 128,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
    },
}

# Language models that go by a name of their own inside a wrapper, and are another family's in every size.
SAME_AS: Mapping[str, str] = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_5_omni_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "glm4v_text": "glm4",
    "glm4v_moe_text": "glm4_moe",
}


def read_language(
    config: Config,
    name: str,
    *,
    keys: tuple[str, ...] = ("text_config",),
    default_type: str | None = None,
    tied: bool | None = None,
    extra: Mapping[str, object] | None = None,
) -> ModelSpec:
    """Return the language model of a wrapper's config, under its own checkpoint names.

    It is read from the first of `keys` that is there; without any, from the wrapper's own keys, where older configs
    keep them. `default_type` is its family where the config does not name one. `tied` overrides who ties the head: by
    default the wrapper's key, else the language model's, else its family. `extra` sets keys that the config leaves
    out.

    Raises: UnsupportedModel when there is no such part, or its family is not known.
    """
    part = next((config.sub(key) for key in keys if config.has(key)), None)
    own = part or Config(config.raw(), path=config.path)
    model_type = own.str("model_type", default=default_type or "") if part else (default_type or "")
    if not model_type:
        raise UnsupportedModel(f"the config has no key `{keys[0]}.model_type`")
    family = SAME_AS.get(model_type, model_type)
    if family not in FAMILIES:
        raise UnsupportedModel(f"unknown family of language model: `{model_type}`", hint="try --introspect torch")
    raw: dict[str, object] = {**defaults_of(model_type), **own.raw(), **(extra or {})}
    raw |= {"model_type": family, "architectures": ["ForCausalLM"]}
    if (dtype := config.get("torch_dtype", "dtype")) is not None:
        raw["torch_dtype"] = dtype
    if tied is None and config.has("tie_word_embeddings"):
        tied = config.bool("tie_word_embeddings")
    if tied is not None:
        raw["tie_word_embeddings"] = tied
    return load_family(family)(Config(raw, path=own.path), name)


def defaults_of(model_type: str) -> Mapping[str, object]:
    """The class's defaults of a language model, under its name inside a wrapper or under its family's."""
    return DEFAULTS.get(model_type) or DEFAULTS.get(SAME_AS.get(model_type, model_type), {})


def wrap(
    config: Config,
    language: ModelSpec,
    towers: tuple[Tower, ...],
    *,
    prefix: str = "",
    model: str | None = None,
    extra: tuple[Tensor, ...] = (),
) -> ModelSpec:
    """Return the whole model: the language model under its new names, its towers, and `extra` tensors beside them.

    `prefix` is put before every name of the language model. `model` instead takes the place of a leading `model.`,
    and leaves the other names (`lm_head`) alone.
    """

    def renamed(name: str) -> str:
        if model is not None and name.startswith("model."):
            return f"{model}.{name.removeprefix('model.')}"
        return prefix + name

    shared, mtp = (
        tuple(replace(tensor, name=renamed(tensor.name)) for tensor in part) for part in (language.shared, language.mtp)
    )
    return replace(
        language,
        model_type=config.str("model_type"),
        architecture=architecture(config),
        layer_prefix=renamed(language.layer_prefix),
        shared=(*shared, *extra),
        mtp=mtp,
        towers=towers,
    )


def merged(config: Config, key: str, defaults: Mapping[str, object]) -> Config:
    """The part under `key`, with a class's defaults for keys that are absent; all defaults when there is no such
    part.
    """
    raw = config.get(key)
    if raw is None:
        return Config(defaults, path=key)
    Config(raw, path=key)
    return Config({**defaults, **cast("Mapping[str, object]", raw)}, path=key)
