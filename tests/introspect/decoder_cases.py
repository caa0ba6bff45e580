"""The facts of known decoders, and small configs of every decoder that transformers can build."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from memplan.domain.attention import Cache, LinearState
from memplan.domain.model import ModelSpec
from memplan.introspect.config import Config
from memplan.introspect.families import build_spec

Raw = dict[str, object]

# What the default configs of these classes lack, or what would make them large.
OVERRIDES: dict[str, Raw] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "gemma3n_text": {"num_hidden_layers": 10, "num_kv_shared_layers": 4},
    "glm4_moe": {"head_dim": 128},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "conv", "full_attention", "conv"]},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "qwen4_exp_text": {
        "eos_token_id": 5,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 4,
        "indexer_head_dim": 256,
        "indexer_kv_heads": 1,
        "indexer_n_heads": 16,
        "ple_layer_ids": [2, 5],
    },
}
FEW_LAYERS: Raw = {"num_hidden_layers": 6}
# Classes that their own library cannot build from their defaults, or whose layers would take too long.
NOT_BUILT = {"dbrx", "longcat_flash"}


def _expanded(value: object) -> object:
    """The lists of the facts are stored as runs or cycles where that is shorter."""
    if not isinstance(value, dict):
        return value
    if value.keys() == {"cycle", "length"}:
        return [value["cycle"][index % len(value["cycle"])] for index in range(value["length"])]
    if value.keys() == {"runs"}:
        return [item for item, times in value["runs"] for _ in range(times)]
    return value


def _fact(row: Raw) -> Raw:
    config = row["config"]
    assert isinstance(config, dict)
    return {**row, "config": {key: _expanded(value) for key, value in config.items()}}


FACTS: list[Raw] = [
    _fact(row) for row in json.loads((Path(__file__).parent / "golden_decoders.json").read_text(encoding="utf-8"))
]


def read_fact(fact: Mapping[str, object]) -> ModelSpec:
    return build_spec(Config(fact["config"]), str(fact["name"]))


def fact_label(fact: Mapping[str, object]) -> str:
    return str(fact["name"]).replace(" ", "-")


def state_elements(caches: tuple[Cache, ...]) -> int:
    """The elements that recurrent layers keep for one sequence, those of their convolutions included."""
    return sum(cache.state_elements + cache.conv_elements for cache in caches if isinstance(cache, LinearState))
