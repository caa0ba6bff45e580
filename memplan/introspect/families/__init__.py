"""The model families: which file reads which `model_type`. A literal table, so that one family is imported at a time.

An ordinary family is one entry here and one line in `decoder.py`; an unusual one is a file of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from memplan.domain.model import ModelSpec
from memplan.errors import UnsupportedModel, did_you_mean
from memplan.introspect.config import Config

Build = Callable[[Config, str], ModelSpec]

_HERE = "memplan.introspect.families"
FAMILIES: Mapping[str, str] = {
    "llama": "decoder:LLAMA",
    "mistral": "decoder:MISTRAL",
    "qwen2": "decoder:QWEN2",
    "qwen3": "decoder:QWEN3",
    "mixtral": "decoder:MIXTRAL",
    "qwen3_moe": "decoder:QWEN3_MOE",
}


def build_spec(config: Config, name: str) -> ModelSpec:
    """Return the ModelSpec of a config, by its `model_type`.

    Raises: UnsupportedModel when the family is not known, or a key that it needs is missing.
    """
    model_type = config.str("model_type", default="")
    if not model_type:
        raise UnsupportedModel("the config has no key `model_type`", hint="give a complete config.json")
    if model_type not in FAMILIES:
        known = did_you_mean(model_type, sorted(FAMILIES))
        raise UnsupportedModel(
            f"unknown model family: `{model_type}`", hint=known or "try --introspect torch, which asks transformers"
        )
    return load_family(model_type)(config, name)


def load_family(model_type: str) -> Build:
    """Return the function that builds a family's ModelSpec."""
    module, attribute = FAMILIES[model_type].split(":")
    build: Build = getattr(importlib.import_module(f"{_HERE}.{module}"), attribute)
    return build
