"""The rotary tables that a model's config implies: cosines and sines that engines precompute for every position.

They are no parameters and in no checkpoint, but they lie on the GPU beside the weights: 131,072 positions of 128
values in 16 bits are 32 MiB.

Source: transformers' configuration keys; which rows an engine makes of them was read in vLLM 0.8 to 0.33
(model_executor/layers/rotary_embedding). Not modelled: engines that compute angles on the fly.
"""

from __future__ import annotations

from typing import Literal

from memplan.domain.model import RotaryTable
from memplan.errors import UnsupportedModel
from memplan.introspect.config import Config
from memplan.records import replace

_SECTION = ("text_config", "llm_config", "language_config", "thinker_config")


def rotary_tables(config: Config) -> tuple[RotaryTable, ...]:
    """Return the tables of a config's language model; none when it has no rotary embedding or an unreadable one."""
    try:
        text = _language_model(config)
        if not _is_rotary(text):
            return ()
        return _tables(text)
    except UnsupportedModel:
        return ()


def _language_model(config: Config) -> Config:
    for key in _SECTION:
        if config.has(key):
            return _language_model(config.sub(key))
    return config


def _is_rotary(config: Config) -> bool:
    keys = (
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rotary_dim",
        "rotary_pct",
        "rope_ratio",
        "rotary_emb_base",
    )
    return any(config.has(key) for key in keys) or str(config.get("model_type")) in _ROTARY_BY_DEFAULT


_ROTARY_BY_DEFAULT = frozenset(
    {"llama", "mistral", "mixtral", "baichuan", "internlm", "phi", "stablelm", "gpt_neox", "falcon"}
)


def _tables(config: Config) -> tuple[RotaryTable, ...]:
    width = _rotary_width(config)
    positions = config.int("max_position_embeddings", "seq_length", "n_positions", "max_sequence_length", default=2048)
    unscaled = positions
    scaling = _scaling(config)
    factor = scaling.float("factor", default=1.0) if scaling else 1.0
    kind = scaling.str("rope_type", "type", default="default") if scaling else "default"
    original = (scaling.optional_int("original_max_position_embeddings", minimum=1) if scaling else None) or positions
    if kind in ("linear", "dynamic"):
        positions = round(positions * factor)
    elif kind in ("yarn", "deepseek_yarn"):
        positions = round(original * factor)
    elif kind in ("longrope", "su"):
        positions += config.optional_int("original_max_position_embeddings", minimum=1) or original
    is_multimodal = scaling is not None and scaling.has("mrope_section")
    factors: Literal["", "llama3", "longrope"] = "llama3" if kind == "llama3" else ""
    if kind in ("longrope", "su"):
        factors = "longrope"
    table = RotaryTable(positions=positions, width=width, is_multimodal=is_multimodal, factors=factors)
    if config.has("rope_local_base_freq") or (scaling is not None and scaling.has("sliding_attention")):
        full = scaling.sub("full_attention") if scaling is not None and scaling.has("full_attention") else None
        if full is not None and full.get("rope_type") == "proportional":  # angles of 0 where nothing is rotated
            table = replace(table, width=config.int("global_head_dim", default=width))
        return (table, RotaryTable(positions=unscaled, width=width))
    return (table,)


def _scaling(config: Config) -> Config | None:
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), dict):
            return config.sub(key)
    return None


def _rotary_width(config: Config) -> int:
    """Elements of a head that are rotated."""
    if config.has("qk_rope_head_dim"):
        return config.int("qk_rope_head_dim")
    if config.has("rotary_dim"):
        return config.int("rotary_dim")
    heads = config.int("num_attention_heads", "n_head", "num_heads")
    head = config.optional_int("head_dim", "kv_channels", minimum=1)
    width = head or config.int("hidden_size", "n_embd") // heads
    scaling = _scaling(config)
    partial = config.float("partial_rotary_factor", "rotary_pct", "rope_pct", default=1.0)
    if scaling is not None and scaling.has("partial_rotary_factor"):
        partial = scaling.float("partial_rotary_factor")
    return round(width * partial)
